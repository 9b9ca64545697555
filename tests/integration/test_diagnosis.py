"""Runs that cannot learn say so, and why, within half a minute of their first batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from support.places import ROOT
from support.run_house import ENVIRONMENT, Command
from support.waiting import deadline_s

pytestmark = pytest.mark.ray

SOON_S = 30.0
RECIPE = {
    "name": "stuck",
    "steps": 3,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "support.dead_ends:Wall", "feedback": "binary"},
    "rollout": {"name": "attempt", "episodes": 4},
    "sampling": {"max_tokens": 2},
    "actors": {"count": 1, "groups": 16, "engine": {"max_running": 64, "max_length": 64}},
    "learner": {
        "batch_groups": 16,
        "row_tokens": 128,
        "micro_tokens": 1024,
        "attention": "eager",
        "objective": {"name": "sft"},
    },
    "evaluation": {"n": 4, "independent": 1, "greedy": False},
}

SCRIPTED = {  # of runs in which nothing hangs on what a model says
    **RECIPE["actors"],
    "probe_tolerance": 1e6,  # a script has no weights that could be proved
    "engine": {"name": "scripted", "max_length": 64},
}
HEALTHY = {  # recipes that learn, with as many steps as show it
    "quickstart": 20,
    "signs-rise": 20,
    "signs-grpo": 30,
    "signs-star": 40,
    "signs-introspect": 15,
    "minicraft-agent-r": 15,
}
RUNS = [(name, seed) for seed in range(4) for name in HEALTHY][:20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all healthy runs, so that each base model is made once."""
    return tmp_path_factory.mktemp("healthy")


@pytest.mark.prove
@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_a_run_that_learns_is_not_said_to_be_unable_to(folder, name, seed):
    settings = (f"seed={seed}", f"steps={HEALTHY[name]}", "evaluation.n=40")
    run = Command(folder, "train", str(ROOT / "recipes" / f"{name}.yaml"), "--run", f"{name}-{seed}", *settings)
    output = run.wait(600)
    assert run.process.returncode == 0, output[-3000:]
    assert run.steps(f"{name}-{seed}")[-1] == HEALTHY[name]
    assert run.lines(f"{name}-{seed}", "findings.jsonl") == run.summary(f"{name}-{seed}")["findings"] == []


def train(folder, **changes) -> Command:
    recipe = RECIPE | changes | {"learner": RECIPE["learner"] | changes.get("learner", {})}
    (folder / "stuck.yaml").write_text(yaml.safe_dump(recipe))
    return Command(folder, "train", "stuck.yaml")


def told(run: Command) -> dict[str, dict]:
    """The findings so far, by cause."""
    return {line["cause"]: line for line in run.lines("stuck", "findings.jsonl")}


def test_answers_that_are_cut_and_steps_that_train_nothing_are_told_within_half_a_minute_of_the_first_batch(tmp_path):
    run = train(tmp_path, learner={"credit": {"name": "raw", "keep": "success"}})
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    found, steps = told(run), run.lines("stuck", "metrics.jsonl")
    for cause in ("answers_cut", "answers_unparsed", "nothing_trained", "reward_constant"):
        assert found[cause]["since_s"] <= steps[0]["time_s"] + deadline_s(SOON_S), cause
        assert found[cause]["cure"], cause
    assert "were cut at sampling.max_tokens=2" in found["answers_cut"]["problem"]
    assert "trained nothing" in found["nothing_trained"]["problem"]
    assert "could find nothing to judge" in found["answers_unparsed"]["problem"]
    assert not {"weights_not_arriving", "weights_frozen", "endpoint_down", "test_tasks_in_training"} & found.keys()
    kept = {finding["cause"] for finding in run.summary("stuck")["findings"]}
    assert kept == found.keys(), "the summary keeps them"
    report = (tmp_path / "runs" / "stuck" / "report.html").read_text()
    assert "were cut at sampling.max_tokens=2" in report and "Raise sampling.max_tokens" in report
    assert "Raise sampling.max_tokens" in output, "the terminal shows the cure"
    assert "Raise sampling.max_tokens" in (tmp_path / "runs" / "stuck" / "logs" / "controller.log").read_text()


def test_groups_that_are_all_set_aside_are_told_while_the_run_waits_and_by_the_error_that_ends_it(tmp_path):
    waits = {"claim_deadline_s": 25, "credit": {"name": "group"}}
    run = train(tmp_path, actors=SCRIPTED, replay={"drop_flat": True}, learner=waits)
    run.until(lambda: "groups_flat" in told(run), 200)
    asked = subprocess.run(
        [sys.executable, "-m", "redraft", "status", "stuck", "--json"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=deadline_s(60),
    )  # fmt: skip
    status = json.loads(asked.stdout)
    if "summary" not in status:  # else it has ended meanwhile, on a busy machine
        assert "groups_flat" in {finding["cause"] for finding in status["findings"]}
    run.wait(240)
    summary = run.summary("stuck")
    finding = next(one for one in summary["findings"] if one["cause"] == "groups_flat")
    assert "filtered: all their answers scored the same (right: 0 %)" in finding["problem"]
    assert "partial credit" in finding["cure"] and "replay.drop_flat: false" in finding["cure"]
    training = summary["seconds"] - 25  # it never had a batch, and the learner waited so long for the first
    assert finding["since_s"] <= training + deadline_s(SOON_S)
    assert "for groups that are not flat" in summary["error"] and "replay.drop_flat: false" in summary["error"]


def test_a_judge_that_is_down_is_told_although_the_first_evaluation_ends_the_run(tmp_path):
    enough = {"n": 8, "independent": 4, "greedy": False}
    judged = {"actors": SCRIPTED, "environment": {"name": "support.dead_ends:Judged"}, "evaluation": enough}
    run = train(tmp_path, **judged, learner={"credit": {"name": "raw"}})
    run.wait(240)
    assert "all 32 episodes of the evaluation broke off" in run.summary("stuck")["error"]
    assert {"episodes_broken", "endpoint_down"} <= told(run).keys()
    assert "ConnectionError: the judge at 10.0.0.7" in told(run)["endpoint_down"]["problem"]
