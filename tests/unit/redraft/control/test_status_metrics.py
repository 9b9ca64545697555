"""What the controller exports of a run by what it knows of all parts at one time."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import REGISTRY

from actors.contract import Report
from protocols import metrics
from protocols.evaluation import ActionFigures, AnswerFigures, EnvironmentFigures, EvaluationSummary, Figure
from protocols.nvml import Gpu
from protocols.reports import GpuStatus, RunStatus, StepReport
from protocols.weights import WeightRef, version_of
from redraft import recipe as recipes
from redraft.control import status as module
from redraft.control.fleet import Member
from redraft.control.status import Status, tell_accuracy
from redraft.run import Run
from redraft.watch import live, top

GPUS = (Gpu("Card", 80 << 30, 61 << 30, 0.87, 610.0, 3), Gpu("Card", 80 << 30, 1 << 30, None, None, 4))


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"redraft_{name}", labels)


def fleet(*reports: Report) -> dict[int, Member]:
    return {number: Member(f"actor-{number}", None, 0.0, 0.0, report) for number, report in enumerate(reports)}


@pytest.fixture
def status(tmp_path) -> Status:
    values = {
        "name": "seen",
        "steps": 9,
        "model": {"make": {}},
        "environment": {"name": "signs"},
        "actors": {"gpus": 0.5},
        "learner": {"gpus": 1, "ranks": 2, "credit": {"name": "raw"}},
    }
    return Status(Run(tmp_path, "id", "model"), recipes.build(values))


def published(status: Status, step: int) -> None:
    """As the learner's: only what the status reads of it."""
    probe = SimpleNamespace(logprobs=(0.0,))
    status.published(cast(WeightRef, SimpleNamespace(version=version_of(0, step), digest="digest", probe=probe)))


def test_versions_behind_are_those_of_one_moment_and_never_below_0(status, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    published(status, 5)
    status.fleet(fleet(Report("ready", 5), Report("ready", 3), Report("starting")), 3, 0)
    behind = [value("controller_actor_versions_behind", actor=f"actor-{number}") for number in range(3)]
    assert behind == [0, 2, None]
    status.fleet(fleet(Report("ready", 6)), 1, 0)  # of a future that a learner which went back has lost
    assert value("controller_actor_versions_behind", actor="actor-0") == 0
    assert value("controller_actor_versions_behind", actor="actor-1") is None, "it has left"


def test_gpus_that_are_held_are_counted_for_as_long_as_they_are(status, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    status.started(0, 1)
    status.fleet(fleet(Report("ready", 0)), 1, 0)
    before = value("controller_gpu_seconds_total")
    waiting = fleet(Report("ready", 0), Report("ready", 0), Report("starting"))
    waiting[2].waiting = True
    clock.now = 110.0
    status.fleet(waiting, 3, 0)
    assert value("controller_gpus") == 3.0, "two ranks with one each, two actors with a half; the third holds none yet"
    assert value("controller_gpu_seconds_total") - before == 30.0
    assert value("controller_steps") == 9


def test_what_gpus_do_is_shown_beside_what_their_processes_do(status):
    status.gpus({"learner-0": GPUS[:1]})
    status.fleet(fleet(Report("ready", 0, gpus=GPUS)), 1, 0)
    seen = status.snapshot()
    assert [(gpu.name, gpu.number) for gpu in seen.gpus] == [("learner-0", 3), ("actor-0", 3), ("actor-0", 4)]
    assert RunStatus.from_json(seen.to_json()).gpus == seen.gpus
    text = dict(live.facts(seen))["GPUs"]
    assert text == "learner-0: 87% busy, 65 of 86 GB, 610 W; actor-0: 87% busy, 65 of 86 GB, 610 W and 1 more"
    doing = {part.name: part.doing for part in top.parts(replace(seen, state="training"))}
    assert doing["actor-0"].endswith(", GPU 87% busy, 65 of 86 GB, 610 W") and "GPU" in doing["learner"]
    assert live.gpu_text(GpuStatus("actor-0", 4, None, 1 << 30, 80 << 30, None)) == "1 of 86 GB"


def test_without_a_gpu_nothing_is_said_of_any(status):
    status.fleet(fleet(Report("ready", 0)), 1, 0)
    seen = status.snapshot()
    assert "GPUs" not in dict(live.facts(seen))
    assert not [part for part in top.parts(seen) if "GPU" in part.doing]


def test_held_out_accuracy_is_exported_with_its_error_by_turn_or_by_episode():
    answers = AnswerFigures(accuracy_by_turn=(Figure(0.5, 0.02), Figure(0.7, None)))
    tell_accuracy("before", EvaluationSummary(n=9, turns=2, k=1, sampled=answers))
    tell_accuracy("after", EvaluationSummary(n=9, turns=9, k=1, sampled=ActionFigures(success=Figure(0.25, 0.1))))
    found = [value("evaluation_accuracy", occasion="before", index=str(index)) for index in (0, 1, 2)]
    assert found == [0.5, 0.7, None]
    assert value("evaluation_accuracy_error", occasion="before", index="0") == 0.02
    assert math.isnan(value("evaluation_accuracy_error", occasion="before", index="1"))
    assert value("evaluation_accuracy", occasion="after", index="0") == 0.25


def test_what_was_solved_of_each_environment_of_several_is_exported():
    answers = AnswerFigures(accuracy_by_turn=(Figure(0.5, 0.02), Figure(0.7, None)))
    none = AnswerFigures(accuracy_by_turn=(Figure(),))
    several = {"signs": EnvironmentFigures(6, 0, answers), "words": EnvironmentFigures(3, 3, none)}
    tell_accuracy("before", EvaluationSummary(n=9, turns=2, k=1, sampled=answers, environments=several))
    assert value("evaluation_environment_accuracy", occasion="before", environment="signs") == 0.7
    assert math.isnan(value("evaluation_environment_accuracy", occasion="before", environment="words"))


def test_the_disk_is_told_by_what_may_still_be_written_and_one_that_is_gone_stops_nobody(tmp_path):
    metrics.tell_disk(tmp_path)
    free, size = value("disk_free_bytes"), value("disk_bytes")
    assert 0 < free < size
    metrics.tell_disk(tmp_path / "gone")
    assert value("disk_bytes") == size


def test_a_stop_that_would_come_too_late_is_told_once_by_what_a_step_and_a_checkpoint_took(tmp_path):
    values = {"name": "x", "steps": 9, "model": {"make": {}}, "environment": {"name": "signs"}, "stop_s": 30}
    status = Status(Run(tmp_path, "id", "model"), recipes.build(values | {"learner": {"credit": {"name": "raw"}}}))
    quick = {"wait": 99.0, "pack": 99.0, "train": 9.0, "gather": 1.0, "checkpoint": 19.0}
    status.step_done(StepReport(step=1, seconds=quick))
    status.step_done(StepReport(step=2, seconds=quick | {"train": 99.0, "checkpoint": 0.0}))
    assert status.snapshot().events == (), "no checkpoint has shown what one takes beside such a step"
    for step in (3, 4):
        status.step_done(StepReport(step=step, seconds=quick | {"checkpoint": 21.0}))
    [told] = status.snapshot().events
    assert "a step takes 10.0 s and a checkpoint 21.0 s, together more than stop_s=30" in told
