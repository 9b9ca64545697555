"""What the learner exports of a step to Prometheus: what was measured, and no older value where nothing was."""

from __future__ import annotations

import math

import numpy as np
from prometheus_client import REGISTRY

from learner.batches.batch import report_of
from learner.objectives import STATS, report
from protocols.reports import StepReport
from protocols.turns import Group, Role, Stop, Turn


def exported(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"redraft_learner_{name}", labels)


def told(stats: dict, *turns: Turn) -> StepReport:
    """A step's report of these summed stats and turns."""
    fit = report(np.array([stats.get(name, 0.0) for name in STATS]))
    return StepReport(1, 1, fit, batch=report_of([Group(bytes(16), 0, turns)], 0), seconds={"train": 1.0})


def attempt(index: int, stop: Stop, **extra) -> Turn:
    arrays = (np.zeros(0, np.int32), np.ones(8, np.int32), np.full(8, -1.0, np.float32))
    facts = {"index": index, "reward": 1.0, "stop": stop, "extra": extra}
    return Turn(bytes(16), 0, index, -1, *arrays, ((0, 0),), Role.ATTEMPT, **facts)


def test_a_figure_that_a_step_does_not_have_is_no_number_and_an_older_one_is_dropped():
    stats = {"tokens": 16, "entropy": 8.0, "loss": 1.0}
    told(stats, attempt(0, Stop.LENGTH, parsed=False), attempt(1, Stop.END, parsed=True, success=True)).export()
    assert (exported("trained_tokens"), exported("entropy")) == (16, 0.5)
    assert math.isnan(exported("logprob_mismatch")), "nothing sampled was trained"
    assert (exported("reward", index="1"), exported("accuracy", index="0")) == (1, 1)
    assert exported("cut_share", role="attempt") == exported("unparsed_share", role="attempt") == 0.5
    assert exported("response_tokens", role="attempt") == exported("longest_response_tokens", role="attempt") == 8
    told({}).export()
    assert exported("trained_tokens") == 0
    assert all(math.isnan(exported(name)) for name in ("loss", "entropy", "gradient_norm", "masked_share"))
    by_role = ("cut_share", "unparsed_share", "response_tokens", "longest_response_tokens")
    assert [exported(name, role="attempt") for name in by_role] == [None] * 4
    assert exported("reward", index="1") is None and exported("accuracy", index="0") is None
