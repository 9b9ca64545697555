"""A figure that is declared once is shown everywhere, and what is written as JSON is read back as it was."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure
from protocols.measured import ByRole, Reported, Value, measured
from protocols.metrics import METRICS
from protocols.reports import (
    ActorStatus,
    BatchReport,
    Finding,
    FitReport,
    Responses,
    RunEnded,
    RunStatus,
    StepLine,
    StepReport,
    status_from_json,
    status_to_json,
)

FOUND = EvaluationSummary(n=9, turns=1, k=1, sampled=AnswerFigures(accuracy_by_turn=(Figure(0.5, 0.1),)))
LINE = StepLine(
    StepReport(
        step=3,
        version=1_000_003,
        fit=FitReport(loss=0.5, trained_tokens=90, entropy=0.25),
        lr=1e-5,
        batch=BatchReport(
            groups=8,
            reward=0.5,
            reward_by_index=[0.25, 0.75],
            staleness_counts={"0": 7, "2": 1},
            responses=Responses({"attempt": 0.5}, {}, {"attempt": {"mean": 7.5, "p50": 8.0, "max": 9}}),
        ),
        wait_reason="staleness",
        seconds={"wait": 0.5},
    ),
    time_s=12.5,
    tokens_per_s=100.0,
    turns_per_s=10.0,
    actors=2,
    leases=16,
)
KEYS = """step version loss trained_tokens mismatch_mean mismatch_max effective_samples masked_share entropy kl
anchor_kl gradient_norm lr groups turns sampled_tokens reward reward_by_index success_by_index
reward_by_role reward_parts groups_by_environment reward_by_environment success_by_environment
flagged_share good_share navigated_share
staleness_mean staleness_max staleness_counts cut_share unparsed_share response_tokens
sequences trained_turns tokens padding_share truncated_sequences errors skipped_updates probe_noise wait_reason
held_share max_staleness seconds
time_s tokens_per_s
turns_per_s generations attempts generated_tokens actors leases""".split()


@dataclass(frozen=True)
class Inner(Reported):
    clipped_share: float | None = measured("Share that was clipped", Value("test_clipped_share"))
    by_role: dict[str, float] = measured(
        "Share by role", ByRole("test_by_role"), unit="nats", group="batch", factory=dict
    )


@dataclass(frozen=True)
class Outer(Reported):
    inner: Inner = field(default_factory=Inner)
    speed: float = measured("Speed", tracked="run/fast", default=0.0)


# The metrics of this file are no metrics of Redraft, from the moment in which pytest has read it.
DECLARED = [metric for metric in METRICS if metric.name.startswith("redraft_test_")]
METRICS[:] = [metric for metric in METRICS if metric not in DECLARED]


def test_one_declaration_makes_the_key_the_name_at_trackers_and_the_metric():
    report = Outer(Inner(0.25, {"attempt": 0.5}), speed=3.0)
    assert report.to_json() == {"clipped_share": 0.25, "by_role": {"attempt": 0.5}, "speed": 3.0}
    assert [(name, value) for name, _, value in report.measures()] == [
        ("learner/clipped_share", 0.25),
        ("batch/by_role", {"attempt": 0.5}),
        ("run/fast", 3.0),
    ]
    report.export()
    assert REGISTRY.get_sample_value("redraft_test_clipped_share") == 0.25
    assert REGISTRY.get_sample_value("redraft_test_by_role", {"role": "attempt"}) == 0.5
    assert [metric.help for metric in DECLARED] == ["Share that was clipped", "Share by role"]


def test_what_a_step_does_not_have_is_exported_as_no_number_and_no_series():
    Outer(Inner(0.25, {"attempt": 0.5})).export()
    Outer().export()
    assert math.isnan(REGISTRY.get_sample_value("redraft_test_clipped_share"))
    assert REGISTRY.get_sample_value("redraft_test_by_role", {"role": "attempt"}) is None


def test_the_keys_of_metrics_jsonl_are_these_in_this_order():
    assert list(LINE.to_json()) == KEYS


def test_a_line_is_read_back_as_it_was_and_what_it_lacks_has_its_default():
    assert StepLine.from_json(json.loads(json.dumps(LINE.to_json()))) == LINE
    assert StepLine.from_json({"step": 7, "loss": 0.5}) == StepLine(StepReport(step=7, fit=FitReport(loss=0.5)))


@pytest.mark.parametrize(
    "status",
    [
        RunStatus("quickstart"),
        RunStatus(
            "quickstart",
            steps=9,
            step=3,
            state="training",
            progress=(3, 500),
            tokens_per_s=100.0,
            turns_per_s=10.0,
            leases=16,
            actors=(ActorStatus("actor-0", "ready", 3), ActorStatus("actor-1")),
            waits={"learner": "groups 0.5 s/step"},
            findings=(Finding("groups_flat", "All are.", "Vary.", 1.0, 2),),
            reward_history=(0.25, 0.5),
            events=("12:00:00 actor-1 replaced",),
            last=LINE,
        ),
        RunEnded("quickstart", "done", before=FOUND, steps=9, findings=(Finding("groups_flat", "a", "b", 1.0, 2),)),
    ],
    ids=["starting", "training", "ended"],
)
def test_a_status_is_read_back_as_it_was(status):
    assert status_from_json(json.loads(json.dumps(status_to_json(status)))) == status


def test_the_figures_of_the_newest_step_lie_beside_what_the_run_says_of_itself():
    found = RunStatus("quickstart", step=3, actors=(ActorStatus("actor-0"),), last=LINE).to_json()
    assert (found["loss"], found["reward"], found["version"]) == (0.5, 0.5, 1_000_003)
    assert [actor["name"] for actor in found["actors"]] == ["actor-0"]
