"""Why something is idle is told apart, and no second is counted twice or lost."""

import time

import pytest

from actors.clock import StateClock, state_of
from learner.ranks.lead import Waits, wait
from learner.ranks.timing import timed
from protocols import metrics
from redraft.control.admission import LIMITS, Limit


def counted(metric: metrics.Metric) -> dict[str, float]:
    """The value of a counter by its one label."""
    return {next(iter(sample.labels.values())): sample.value for sample in metric._live.collect()[0].samples}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {key: after[key] - before.get(key, 0.0) for key in after if after[key] > before.get(key, 0.0)}


@pytest.fixture
def clock(monkeypatch):
    def monotonic() -> float:
        return monotonic.now

    monotonic.now = 100.0
    monkeypatch.setattr(time, "monotonic", monotonic)
    return monotonic


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (dict(ready=False, loading=False, running=0, playing=0, at_replay=0), "start"),
        (dict(ready=True, loading=True, running=8, playing=8, at_replay=0), "weights"),
        (dict(ready=True, loading=False, running=1, playing=8, at_replay=7), "generating"),
        (dict(ready=True, loading=False, running=0, playing=0, at_replay=0), "no_lease"),
        (dict(ready=True, loading=False, running=0, playing=8, at_replay=8), "replay"),
        (dict(ready=True, loading=False, running=0, playing=8, at_replay=7), "environment"),
    ],
)
def test_an_actor_says_what_it_waits_for(facts, state):
    assert state_of(**facts) == state


def test_every_second_of_an_actor_is_counted_for_one_state(clock):
    before, states = counted(metrics.ACTOR_SECONDS), StateClock()
    for seconds, state in ((2.0, "start"), (3.0, "generating"), (0.5, "weights"), (4.5, "generating")):
        clock.now += seconds
        states.see(state)
    seen = grown(before, counted(metrics.ACTOR_SECONDS))
    assert seen == pytest.approx({"start": 2.0, "generating": 7.5, "weights": 0.5})


def test_what_holds_leases_back_is_counted_and_the_learner_is_told_of_changes_only(clock):
    told = []
    before, limit = counted(metrics.ADMISSION_SECONDS), Limit(lambda wait, change: told.append(wait))
    assert set(LIMITS) <= counted(metrics.ADMISSION_SECONDS).keys()
    for name in ("actors", "none", "staleness", "staleness", "replay", "none"):
        clock.now += 1.0
        limit.note(name)
    assert grown(before, counted(metrics.ADMISSION_SECONDS)) == pytest.approx(
        {"actors": 1, "none": 2, "staleness": 2, "replay": 1}
    )
    assert told == ["groups", "staleness", "replay", "groups"]


class Claims:
    """A prefetch whose batch comes at the second look, a second later."""

    def __init__(self, reason: str, clock):
        self.reason, self.looks, self._clock = reason, 0, clock

    def ready(self, wait_s: float) -> bool:
        self.looks += 1
        self._clock.now += 1.0
        return self.looks == 2


@pytest.mark.parametrize(
    ("reason", "limit", "state"),
    [
        ("groups", "groups", "groups"),
        ("groups", "staleness", "staleness"),
        ("groups", "replay", "replay"),
        ("straggler", "staleness", "straggler"),
    ],
)
def test_a_learner_that_waits_counts_while_it_waits_and_says_for_what(clock, reason, limit, state):
    waits, claims, seconds, before = Waits(), Claims(reason, clock), {}, counted(metrics.LEARNER_SECONDS)
    waits.hold(limit, 0)
    assert wait(claims, waits, seconds) == (False, state)
    assert grown(before, counted(metrics.LEARNER_SECONDS)) == {state: 1.0}, "counted before the wait is over"
    assert wait(claims, waits, seconds) == (True, state)
    assert grown(before, counted(metrics.LEARNER_SECONDS)) == {state: 2.0} and seconds == {"wait": 2.0}


def test_the_time_in_which_the_bound_holds_actors_back_is_told_apart_once(clock):
    waits = Waits()
    held = (("staleness", 3.0), ("replay", 5.0), ("staleness", 2.0), ("groups", 7.0))
    for change, (limit, seconds) in enumerate(held):
        waits.hold(limit, change)
        clock.now += seconds
    assert waits.held_s() == 5.0 and waits.held_s() == 0.0
    waits.hold("staleness", 4)
    clock.now += 1.0
    assert waits.held_s() == 1.0
    clock.now += 1.0
    assert waits.held_s() == 1.0, "it goes on"
    waits.hold("groups", 3)
    assert waits.held == "staleness", "what was told before is late, not new"


def test_gathering_and_publishing_are_the_cost_of_weights(clock):
    before, seconds = counted(metrics.LEARNER_SECONDS), {}
    for phase in ("train", "commit", "gather", "publish", "checkpoint"):
        with timed(seconds, phase):
            clock.now += 1.0
    assert grown(before, counted(metrics.LEARNER_SECONDS)) == {"training": 2.0, "weights": 2.0, "checkpoint": 1.0}
    assert seconds == dict.fromkeys(("train", "commit", "gather", "publish", "checkpoint"), 1.0)
