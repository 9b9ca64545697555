"""The example is the product's method: it plays, credits and weighs as actors and learner do."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.rollout_house import House

from actors import environments, rendering
from actors.config import DataSettings
from actors.engines import Completion
from actors.rendering import Renderer
from learner.batches.batch import prepare
from learner.credits import credit
from learner.model.load import load_model
from learner.model.policy import Policy
from learner.objectives import loss_of, make
from protocols.turns import LOGPROBS, TOKENS, Group
from redraft.recipe import Recipe, load

ROOT = Path(__file__).parents[3]
_spec = importlib.util.spec_from_file_location("minimal_loop", ROOT / "examples" / "minimal_loop.py")
loop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(loop)
SMALL = loop.ModelSettings(make=loop.MakeSettings(hidden=32, layers=2, heads=1, feed_forward=32), dtype="float32")
TASKS = environments.tasks(loop.ENVIRONMENT, DataSettings(), "train")[:48]
FACTS = ("turn", "parent", "after", "index", "episode", "role", "reward", "stop", "versions")
ARRAYS = ("prompt", "response", "logprobs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return loop.prepare(SMALL, loop.ENVIRONMENT, tmp_path_factory.mktemp("models"), lambda line: None)


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return rendering.load(folder)


@pytest.fixture
def model(folder: Path):
    """Its weights are drawn, but far from uniform, so that answers differ in length."""
    made = load_model(str(folder), torch.float32, "eager")
    with torch.no_grad():
        made.model.embed_tokens.weight.mul_(5)
    return made


@pytest.fixture(scope="module")
def quickstart() -> Recipe:
    return load(ROOT / "recipes" / "quickstart.yaml", [])


@pytest.fixture(scope="module")
def groups(renderer: Renderer) -> list[Group]:
    """Dialogues of one who knows the form: signs at random, reflections at random, now and then no end."""
    rng = np.random.default_rng(0)

    def guess(_, __, contexts) -> list[tuple[np.ndarray, np.ndarray]]:
        said = [_guess(rng, renderer.tokenizer.decode(context)) for context in contexts]
        ids = [np.array(renderer.tokenizer.encode(text, add_special_tokens=False), TOKENS) for text in said]
        return [(one, rng.normal(size=len(one)).astype(LOGPROBS)) for one in ids]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sample", guess)
        return loop.play(None, renderer, TASKS)


def _guess(rng: np.random.Generator, told: str) -> str:
    """What comes after a dialogue: a reflection after feedback, else an attempt."""
    digits = told[:4]
    if told.splitlines()[-1].startswith("?"):
        return "".join(digit for digit in digits[1:] if rng.random() < 0.4) + "\n"
    attempt = digits[0] + "".join(rng.choice(["+", "-"]) + digit for digit in digits[1:])
    return attempt + ("++" if rng.random() < 0.1 else "\n")


def test_its_settings_are_those_of_the_quickstart(quickstart: Recipe):
    settings, optimizer = quickstart.learner, quickstart.learner.optimizer
    assert (loop.ENVIRONMENT, loop.MODEL) == (quickstart.environment, quickstart.model)
    assert (quickstart.rollout.name, quickstart.rollout.turns, quickstart.rollout.reflect) == (
        "retry",
        loop.TURNS,
        True,
    )
    assert (quickstart.sampling.max_tokens, quickstart.sampling.temperature) == (loop.MAX_TOKENS, 1.0)
    assert (settings.batch_groups, quickstart.steps) == (loop.BATCH, loop.STEPS)
    assert (settings.credit.name, settings.credit.baseline) == ("turnwise", "batch")
    assert settings.objective.model_dump() == {
        **{"name": "awr", "temperature": loop.TEMPERATURE},
        **{"max_weight": loop.MAX_WEIGHT, "normalise": True},
    }
    assert optimizer.model_dump(include={"lr", "warmup_steps", "clip", "weight_decay", "schedule"}) == {
        **{"lr": loop.LR, "warmup_steps": loop.WARMUP, "clip": loop.CLIP},
        **{"weight_decay": 0.0, "schedule": "constant"},
    }


class Repeater:
    """An engine that says what was said in a group after the same tokens."""

    def __init__(self, group: Group):
        self.version, self.running, self.error, self._said, told = 0, 0, None, {}, []
        for turn in group.turns:
            told += turn.prompt.tolist()
            self._said[tuple(told)] = turn
            told += turn.response.tolist()

    async def generate(self, prompt_ids: np.ndarray, sampling) -> Completion:
        turn = self._said[tuple(prompt_ids.tolist())]
        return Completion(turn.response, turn.logprobs, turn.versions, turn.stop, 0.0)


def test_the_turns_are_those_that_the_rollout_writes(groups, renderer, quickstart):
    for group, task in zip(groups, TASKS, strict=True):
        house = House(
            quickstart.rollout,
            Repeater(group),
            lambda: environments.make(loop.ENVIRONMENT),
            task,
            tokenizer=renderer.tokenizer,
        )
        assert len(house.turns) == len(group.turns) == 2 * loop.TURNS - 1
        for theirs, ours in zip(house.turns, group.turns, strict=True):
            assert [getattr(theirs, name) for name in FACTS] == [getattr(ours, name) for name in FACTS]
            assert all(np.array_equal(getattr(theirs, name), getattr(ours, name)) for name in ARRAYS)


def test_a_sampled_token_carries_its_log_prob_after_the_whole_dialogue(model, renderer):
    torch.manual_seed(0)
    lengths = set()
    for group in loop.play(model, renderer, TASKS):
        ids = torch.from_numpy(np.concatenate(loop.tokens(group.turns)).astype(np.int64))
        with torch.no_grad():
            logprobs = model(input_ids=ids[None, :-1]).logits.log_softmax(-1)[0].gather(-1, ids[1:, None]).squeeze(-1)
        place = -1
        for turn in group.turns:
            place += len(turn.prompt)
            expected = logprobs[place : place + len(turn.response)].numpy()
            np.testing.assert_allclose(turn.logprobs, expected, atol=1e-3)
            assert renderer.ended(turn.response) or len(turn.response) == loop.MAX_TOKENS
            assert not np.isin(turn.response[:-1], renderer.ends).any()
            place += len(turn.response)
            lengths.add(len(turn.response))
    assert len(lengths) > 3


def test_advantages_loss_and_gradient_are_those_of_the_learner(groups, model, quickstart):
    settings = quickstart.learner
    advantages = loop.credit(groups)
    rewards = {turn.reward for group in groups for turn in group.turns}
    assert rewards == {0.0, 1.0}
    for ours, theirs in zip(advantages, credit(groups, settings.credit), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)

    loss = loop.loss(model, *loop.weigh(groups, advantages))
    loss.backward()
    gradients = {name: weights.grad.clone() for name, weights in model.named_parameters()}
    model.zero_grad()

    policy, objective, total = Policy(model), make(settings.objective), 0.0
    for micro in prepare(groups, 0, settings).micros[0]:
        arrays = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        inputs = (arrays[name] for name in ("tokens", "positions", "picks", "targets"))
        part, _ = loss_of(objective, *policy(*inputs, micro.chunks), arrays)
        part.backward()
        total += part.item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    for name, weights in model.named_parameters():
        torch.testing.assert_close(
            gradients[name], weights.grad, rtol=1e-3, atol=1e-5 * float(weights.grad.abs().max())
        )


def test_it_runs_and_says_how_it_was_before_and_after(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in {"MODEL": SMALL, "BATCH": 8, "TESTS": 4}.items():
        monkeypatch.setattr(loop, name, value)
    loop.main(["--steps", "2"])
    said = capsys.readouterr().out
    assert re.search(r"^before: .*\n\n(?:.*\n)+step 2: loss [\d.]+, .*\nafter: ", said, re.MULTILINE), said


def test_it_is_short_and_the_files_it_names_exist():
    assert len(Path(loop.__file__).read_text().splitlines()) < 200
    named = re.findall(r"\b(?:actors|learner|replay|redraft|recipes)/[\w/.]*\w", loop.__doc__)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
