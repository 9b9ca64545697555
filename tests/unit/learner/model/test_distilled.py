"""Distilling: divergences by hand, the teacher as a constant, its view packed as alone, its average kept."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from support.dialogues import groups
from support.rollout_house import House
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.rollout_config import RetrySettings
from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.lora_config import LoraSettings
from learner.measure import Measure
from learner.model.distilled import Distilled, Guide, divergence_of
from learner.model.head import Shape
from learner.model.policy import Policy
from learner.objectives import loss_of, make
from learner.ranks.trainer import Trainer
from learner.sequences import contexts
from protocols.errors import SettingError
from protocols.turns import Group

VOCABULARY = 40
OWN, TEACHER = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.tensor([[0.25, 0.25, 0.4, 0.1]]).log()


def dialogues(count: int) -> list[Group]:
    """Two turns an episode, the second of which answers the first in time."""
    return [
        replace(group, turns=tuple(replace(turn, after=turn.parent) for turn in group.turns))
        for group in groups(count, VOCABULARY)
    ]


def settings(**values) -> LearnerSettings:
    objective = {"name": "distill", "top": 5, "teacher": "current"} | values.pop("objective", {})
    sizes = {"row_tokens": 32, "micro_tokens": 64, "credit": {"name": "raw"}, "objective": objective}
    return LearnerSettings(**(sizes | values))


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.3, **shape)
    return Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (Measure(1), 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)),
        (Measure(2), 0.5 * log(2) + 0.25 * log(0.25 / 0.5)),
        (Measure(100), 0.5 * log(2) + 0.125 * log(0.125 / 0.4) + 0.125 * log(0.125 / 0.1)),
        (Measure(1, "forward"), 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)),
        (
            Measure(1, "jensen_shannon"),
            (0.5 * log(0.5 / 0.375) + 0.5 * log(0.5 / 0.625) + 0.25 * log(0.25 / 0.375) + 0.75 * log(0.75 / 0.625)) / 2,
        ),
    ],
)
def test_a_divergence_is_over_the_models_likeliest_tokens_and_all_others_as_one(measure, expected):
    assert divergence_of(OWN, TEACHER, measure).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [Shape(), Shape(scale=0.5, softcap=3.0)])
def test_its_gradient_is_that_of_plain_torch_and_none_goes_to_the_teacher(shape):
    torch.manual_seed(1)
    logits, teacher, targets = torch.randn(6, 9), torch.randn(6, 9).requires_grad_(), torch.arange(6)
    weights = torch.rand(6)
    plain, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    scaled = [one * shape.scale for one in (plain, teacher)]
    capped = [shape.softcap * torch.tanh(one / shape.softcap) if shape.softcap else one for one in scaled]
    own, theirs = (torch.log_softmax(one / 0.7, -1) for one in capped)
    top = own.topk(3, -1).indices
    parts = [one.gather(-1, top) for one in (own, theirs.detach())]
    p, t = (torch.cat([part.exp(), 1 - part.exp().sum(-1, keepdim=True)], -1) for part in parts)
    expected = (p * (p / t).log()).sum(-1)
    (expected @ weights).backward()
    found = Distilled.apply(ours * 1, teacher, targets, torch.full((len(targets),), 0.7), shape, Measure(3))
    (found[2] @ weights).backward()
    assert torch.allclose(found[2], expected, atol=1e-6)
    assert torch.allclose(found[0], own[targets, targets], atol=1e-6)
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6) and teacher.grad is None


def test_a_turns_context_is_what_the_next_was_sampled_after():
    (group,) = dialogues(1)
    first, second = group.turns[:2]
    found = contexts(group)
    assert found[0].tolist() == [*first.prompt, *first.response, *second.prompt] and sorted(found) == [0, 2, 4]


def taken(choice: LearnerSettings, made: list[Group]) -> tuple[torch.Tensor, float, int]:
    """The gradient of a batch, its loss, and how many tokens were trained."""
    policy = Policy(model(), packed=bool(choice.packing))
    loss, tokens = 0.0, 0
    for micro in (micro for rank in prepare(made, 0, choice).micros for micro in rank):
        views = micro.views
        with torch.no_grad():
            arrays = (torch.from_numpy(one) for one in (views.tokens, views.positions, views.picks))
            guide = Guide(policy, policy.hidden(*arrays), make(choice.objective).teacher.measure)
        tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        inputs = (tensors[name] for name in ("tokens", "positions", "picks", "targets"))
        logprobs, entropy, divergence = policy(*inputs, micro.chunks, None, guide)
        part, stats = loss_of(make(choice.objective), logprobs, entropy, tensors, divergence_N=divergence)
        part.backward()
        loss, tokens = loss + part.item(), tokens + int(stats[1])
    return torch.cat([one.grad.flatten() for one in policy.parameters()]), loss, tokens


def test_packed_in_pieces_and_over_ranks_it_is_as_by_hand():
    made = dialogues(3)
    trained = [(group, turn, group.turns[turn.turn + 1]) for group in made for turn in group.turns[::2]]
    lm, each = model(), []
    for _, turn, after in trained:
        context = [*turn.prompt, *turn.response, *after.prompt]
        with torch.no_grad():
            teacher = lm(torch.tensor([[*context, *turn.response]])).logits[0, len(context) - 1 : -1]
        own = lm(torch.tensor([[*turn.prompt, *turn.response]])).logits[0, len(turn.prompt) - 1 : -1]
        each.append(divergence_of(own, teacher, Measure(5)))
    expected = torch.cat(each).mean()
    expected.backward()
    gradient = torch.cat([one.grad.flatten() for one in lm.parameters()])
    for changes in ({}, {"packing": False}, {"logprob_chunk": 3}, {"ranks": 3}):
        found, loss, tokens = taken(settings(**changes), made)
        assert tokens == sum(len(turn.response) for _, turn, _ in trained)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(found, gradient, atol=1e-5 * gradient.abs().max().item() + 1e-6)


def test_a_view_longer_than_a_row_is_not_trained_and_counted():
    (group,) = dialogues(1)
    longest = max(len(contexts(group)[turn.turn]) + len(turn.response) for turn in group.turns[::2])
    choice = settings(row_tokens=longest - 1, micro_tokens=longest - 1)
    batch = prepare([group], 0, choice)
    assert batch.report.truncated_sequences > 0
    assert batch.report.trained_turns.get("attempt", 0) < 3


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"credit": {"name": "group"}}, "has no effect"),
        ({"objective": {"rate": 0.5}}, "only acts with"),
    ],
)
def test_what_would_do_nothing_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        settings(**values)


def test_the_average_follows_at_its_rate_and_goes_on_after_a_resume(tmp_path, ranks):
    folder = str(tmp_path / "model")
    model().save_pretrained(folder)
    choice = settings(objective={"teacher": "ema", "rate": 0.25}, optimizer={"lr": 1e-2})
    (micros,) = prepare(dialogues(3), 0, choice).micros

    def begun() -> Trainer:
        return Trainer(choice, folder, steps=4)

    trainer = begun()
    start = {name: one.detach().clone() for name, one in trainer.training.policy.named_parameters()}
    assert trainer.step(micros, 0).gradient_norm > 0
    for name, one in trainer.training.policy.named_parameters():
        expected = start[name] + 0.25 * (one.detach() - start[name])
        assert torch.allclose(dict(trainer.average.policy.named_parameters())[name], expected, atol=1e-7)
    (tmp_path / "engine").mkdir()
    trainer.save(tmp_path / "engine")
    resumed = begun()
    resumed.load(tmp_path / "engine")
    for one in (trainer, resumed):
        one.step(micros, 1)
    for whole, again in (
        (trainer.training.policy, resumed.training.policy),
        (trainer.average.policy, resumed.average.policy),
    ):
        pairs = zip(whole.parameters(), again.parameters(), strict=True)
        assert all(np.array_equal(a.detach().numpy(), b.detach().numpy()) for a, b in pairs)


def test_an_adapter_learns_from_the_policy_that_it_is_part_of(tmp_path, ranks):
    folder = str(tmp_path / "model")
    model().save_pretrained(folder)
    (micros,) = prepare(dialogues(3), 0, settings()).micros
    trainer = Trainer(settings(), folder, steps=2, lora=LoraSettings(rank=4))
    assert trainer.average is None and trainer.step(micros, 0).gradient_norm > 0
    with pytest.raises(SettingError, match="Set it to current"):
        Trainer(settings(objective={"teacher": "ema"}), folder, steps=2, lora=LoraSettings(rank=4))


def test_answers_of_a_real_rollout_are_taught_where_another_followed():
    [task] = environments.tasks(EnvironmentSettings(name="signs"), DataSettings(train_size=1), "train")
    house = House(RetrySettings(turns=2, episodes=2), lambda prompt: "1+1", "signs", task)
    group = Group(bytes(16), 1, tuple(house.turns))
    assert len(contexts(group)) == 2
    batch = prepare([group], 0, settings(row_tokens=128, micro_tokens=128))
    assert batch.report.trained_turns == {"attempt": 2}
