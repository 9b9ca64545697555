"""AgentEvolver's recipes for a few steps on the real parts, from a start model that was made in a hurry: what each
mechanism leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
from support.places import RECIPES
from support.run_house import Command

from actors import synthetic
from learner import journal
from protocols.turns import Group

pytestmark = [pytest.mark.ray, pytest.mark.prove]

LIMIT_S = 400.0  # of each command, also on a busy machine
HURRIED = "model.make.pretrain.steps=120"
SHORT = (HURRIED, "steps=3", "evaluation.n=16", "learner.optimizer.warmup_steps=0")
EQUAL = 1e-5  # of two engines' float32 log-probs of one token, by their size where that is above 1: so float32 rounds


def done(run: Command) -> str:
    """What a command has said once it has ended well."""
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    return output


def trained(folder, name: str, *more: str) -> list[dict]:
    """The figures of each step of a short run of a recipe, none of which has learnt nothing."""
    run = Command(folder, "train", str(RECIPES / f"{name}.yaml"), *SHORT, *more)
    done(run)
    lines = run.lines(name, "metrics.jsonl")
    assert run.steps(name) == [1, 2, 3] and run.summary(name)["after"]["errors"] == 0
    norms = [line["gradient_norm"] for line in lines]
    print(f"\n{name}: gradient norms {norms}")
    assert all(norm > 0 for norm in norms)
    return lines


def test_attributing_trains_on_flagged_steps(tmp_path):
    lines = trained(tmp_path, "minicraft-attributing")
    assert all(line["flagged_share"] == 1.0 and 0 < line["good_share"] < 1 for line in lines)


def test_questioning_trains_on_tasks_that_were_found_and_no_others(tmp_path):
    recipe = str(RECIPES / "signs-questioning.yaml")
    said = done(Command(tmp_path, "question", recipe, "signs-tasks.jsonl", HURRIED, "--explorations", "400"))
    found = synthetic.read(tmp_path / "signs-tasks.jsonl")
    assert f"{len(found)} tasks of 400 proposed" in said and len(found) > 200
    trained(tmp_path, "signs-questioning")


def test_a_told_turn_is_written_with_the_log_probs_of_the_question_alone(tmp_path):
    """Of the tokens that the start model sampled after experience, those of its own forward pass without it."""
    pool, tasks = "minicraft-experience.jsonl", "minicraft-tasks.jsonl"
    recipe = str(RECIPES / "minicraft-agentevolver.yaml")
    done(Command(tmp_path, "question", recipe, tasks, HURRIED, "--explorations", "64"))
    done(Command(tmp_path, "experience", recipe, pool, HURRIED, "data.train_size=64", "--plays", "4"))
    lines = trained(tmp_path, "minicraft-agentevolver", "data.train_size=64", "learner.record.batches=true")
    assert all(0 < line["navigated_share"] < 1 for line in lines)
    told = [path for group in groups(tmp_path, "minicraft-agentevolver") for path in told_by_start(group)]
    assert len(told) > 50
    model = start_model(tmp_path, "minicraft-agentevolver")
    worst = max(difference(model, path) for path in told)
    print(f"{len(told)} told episodes, largest difference {worst:.2e}")
    assert worst < EQUAL


def groups(folder, name: str) -> list[Group]:
    """Every group that the run trained on, by its journal."""
    run = folder / "runs" / name
    return [group for step in journal.steps(run) for group in journal.read(run, step).groups]


def told_by_start(group: Group) -> list[list]:
    """The turns of each told episode that the weights a run starts with have scored, in their order."""
    told: dict[int, list] = {}
    for turn in group.turns:
        if turn.extra.get("navigated") and all(version == 0 for _, version in turn.versions):
            told.setdefault(turn.episode, []).append(turn)
    return list(told.values())


def start_model(folder, name: str):
    import json

    import torch
    from transformers import AutoModelForCausalLM

    model = json.loads((folder / "runs" / name / "run.json").read_text())["model"]
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def difference(model, path: list) -> float:
    """The largest one of a told episode's log-probs and the model's own of the very ids that are written. What was told
    makes likely what is not so without it: log-probs of -10 and below, of which the last digit is 1e-6."""
    import torch

    ids, given, places = [], [], []
    for turn in path:
        ids += turn.prompt.tolist()
        places += range(len(ids), len(ids) + len(turn.response))
        ids += turn.response.tolist()
        given += turn.logprobs.tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = logits[torch.tensor(places) - 1, torch.tensor(ids)[places]].numpy()
    return float((np.abs(own - np.array(given)) / np.maximum(1.0, np.abs(own))).max())
