"""What a step says of the staleness bound: the lead measures, decides, and tells the controller and checkpoints."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from prometheus_client import REGISTRY

from learner.bound import AGREED, Bound
from learner.config import LearnerSettings
from learner.ranks import lead as leads
from learner.ranks.lead import Lead, Waits
from learner.ranks.progress import Progress
from protocols.reports import FitReport, StepReport


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(leads.time, "monotonic", found.monotonic)
    return found


@pytest.fixture
def lead(tmp_path, clock) -> Lead:
    asked = inspect.signature(Lead).parameters.values()
    nobody: dict[str, Any] = {one.name: None for one in asked if one.kind is one.KEYWORD_ONLY}
    facts = {"steps": 99, "progress": Progress(0), "bound": Bound("auto", 3), "waits": Waits()}
    return Lead(LearnerSettings(max_staleness="auto"), tmp_path, "run", 1, **nobody | facts)


def stepped(lead: Lead, clock: Clock, step: int, held_s: float, wait_s: float) -> StepReport:
    """A step of four seconds, in the first of which the bound holds actors back."""
    lead._waits.hold("staleness", 2 * step)
    clock.now += held_s
    lead._waits.hold("groups", 2 * step + 1)
    clock.now += 4.0 - held_s
    report = StepReport(step=step, fit=FitReport(effective_samples=1.0), seconds={"wait": wait_s})
    return lead._find_bound(report, 4.0)


@pytest.mark.parametrize(("held_s", "wait_s", "share"), [(1.0, 2.0, 0.25), (3.0, 2.0, 0.5), (0.0, 2.0, 0.0)])
def test_a_wait_counts_as_far_as_actors_could_have_played_meanwhile(lead, clock, held_s, wait_s, share):
    assert stepped(lead, clock, 1, held_s, wait_s).held_share == share


def test_each_report_says_the_bound_from_now_on_and_so_does_the_metric(lead, clock, caplog):
    caplog.set_level("INFO", "redraft.learner")
    told = [stepped(lead, clock, step, 2.0, 2.0).max_staleness for step in range(1, AGREED + 1)]
    assert told == [0] * (AGREED - 1) + [1]
    assert REGISTRY.get_sample_value("redraft_learner_max_staleness_steps") == 1
    assert f"the staleness bound is 1 after step {AGREED}, 0 before" in caplog.text


def test_nothing_to_gain_by_a_larger_bound_leaves_it(lead, clock):
    assert {stepped(lead, clock, step, 0.0, 3.0).max_staleness for step in range(1, 3 * AGREED)} == {0}
