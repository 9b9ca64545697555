"""The fleet's size follows what the learner waits for: it comes to rest where it should, and stays there."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import ActorSettings, AutoscaleSettings
from protocols.reports import StepReport
from redraft.control.autoscale import ENOUGH, QUIET_S, RECENT, SPARE, Autoscaler
from redraft.recipe import build

TARGET = 0.1
LOOKS = 20  # at the fleet, in each step: as many as the controller has in a second


class Run:
    """A learner that trains `work_s` a step and actors that each make a batch in `batch_s`.

    With `ahead` they play the next batch meanwhile; without it (a staleness bound of 0) they are idle while it trains.
    An actor that is asked for is ready `start_s` later.
    """

    def __init__(self, work_s, batch_s, ahead, count=1, most=32, start_s=30.0, noise=0.0, seed=0):
        self.work_s, self.batch_s, self.ahead = work_s, batch_s, ahead
        self.scaler = Autoscaler(AutoscaleSettings(max=most, target_learner_wait=TARGET), count)
        self.present, self.start_s, self.now, self.ready_at = count, start_s, 0.0, 0.0
        self._noise, self._random = noise, random.Random(seed)
        self.sizes = [count]

    def step(self) -> None:
        if self.now >= self.ready_at:
            self.present = self.scaler.count
        play_s = self.batch_s / self.present * self._random.uniform(1 - self._noise, 1 + self._noise)
        waited_s = max(0.0, play_s - self.work_s) if self.ahead else play_s
        whole_s = waited_s + self.work_s
        for look in range(LOOKS):
            at = (look + 0.5) / LOOKS * whole_s
            idle = at > play_s if self.ahead else at > waited_s
            self.scaler.look(self.now + at, self.present * idle, self.present == self.scaler.count)
        self.now += whole_s
        self.scaler.step(self.now, reported(waited_s, self.work_s))
        if self.scaler.count != self.sizes[-1]:
            self.sizes.append(self.scaler.count)
            self.ready_at = self.now + self.start_s

    def go(self, steps: int) -> list[int]:
        return self.until(lambda: False, steps)

    def until(self, condition: Callable[[], bool], steps: int) -> list[int]:
        """The sizes so far, once the condition holds or so many steps are done."""
        for _ in range(steps):
            if condition():
                break
            self.step()
        return self.sizes


def reported(waited_s: float, work_s: float, reason: str = "groups") -> StepReport:
    return StepReport(seconds={"wait": waited_s, "train": work_s, "pack": 9.0}, wait_reason=reason)


def right(run: Run) -> int:
    """The fewest actors for which the learner would wait no longer than its target, without noise."""
    allowed_s = run.work_s * TARGET / (1 - TARGET) + run.work_s * run.ahead
    return min(max(1, math.ceil(run.batch_s / allowed_s - 1e-6)), 32)


STEPS, NODES = st.floats(1, 120), st.floats(10, 600)  # seconds of the learner's work, and until an actor is ready


@settings(max_examples=200, derandomize=True)
@given(STEPS, st.floats(0.2, 28), st.booleans(), st.integers(1, 12), NODES)
def test_it_finds_the_right_number_within_three_changes_and_never_turns_back(work_s, load, ahead, count, start_s):
    run = Run(work_s, load * work_s, ahead, count, start_s=start_s)
    wanted = right(run)
    sizes = run.until(lambda: len(run.sizes) > 1 and run.sizes[-1] >= wanted, 60 + int(8 * start_s / work_s))
    doublings = math.ceil(math.log2(max(wanted, count) / count))
    if wanted > count:
        assert wanted <= sizes[-1] <= wanted * (1 if ahead else 1.15) + (not ahead), sizes
        assert len(sizes) - 1 <= max(doublings, 1), "as few changes as doubling at most allows: three are eight times"
    rest = run.go(int(20 + QUIET_S / work_s))
    ups = [b > a for a, b in pairwise(rest)]
    assert len(set(ups)) <= 1, "it comes to rest, or goes on down one by one"
    assert all(b - a >= -1 for a, b in pairwise(rest)) and all(b <= 2 * a for a, b in pairwise(rest))


@settings(max_examples=25, derandomize=True)
@given(STEPS, st.floats(0.2, 12), st.integers(2, 20))
def test_actors_that_the_learner_does_not_need_go_one_by_one_until_one_fewer_would_be_missed(work_s, load, more):
    needed = right(Run(work_s, load * work_s, True))
    run = Run(work_s, load * work_s, True, count=min(32, needed + more), start_s=0.0)
    sizes = run.go(int(2 * more * (RECENT + QUIET_S / work_s)))
    assert all(b == a - 1 for a, b in pairwise(sizes)), sizes
    kept = (load + 1) / (1 - SPARE)  # actors of which one, and a share, may be idle
    assert needed <= sizes[-1] <= max(needed, math.ceil(kept)), sizes


@settings(max_examples=100, derandomize=True)
@given(STEPS, st.floats(0.2, 12), st.booleans(), st.integers(0, 1000), NODES)
def test_noise_does_not_make_it_oscillate(work_s, load, ahead, seed, start_s):
    run = Run(work_s, load * work_s, ahead, count=4, start_s=start_s, noise=0.25, seed=seed)
    sizes = run.go(600)
    turns = sum((b > a) != (c > b) for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False))
    assert turns <= 4, sizes
    assert right(run) * 0.8 - 1 <= sizes[-1] <= right(run) * 1.5 + 2, (right(run), sizes)


@pytest.mark.parametrize(("load", "wanted", "minutes"), [(8, [1, 2, 4, 8], 30), (19, [1, 2, 4, 8, 16, 18], 71)])
def test_a_fleet_grows_in_minutes_where_the_learner_works_30_s_and_a_node_takes_five_minutes(load, wanted, minutes):
    run = Run(30.0, load * 30.0, True, start_s=300.0)
    assert run.until(lambda: run.sizes[-1] >= right(run), 1000) == wanted
    assert run.now <= 60 * minutes


def test_no_actor_is_asked_for_while_one_still_starts():
    run = Run(work_s=1.0, batch_s=8.0, ahead=True, start_s=1e9)
    assert run.go(500) == [1, 2]


def test_actors_that_admission_holds_back_get_no_company():
    scaler = Autoscaler(AutoscaleSettings(max=8, target_learner_wait=TARGET), 4)
    for step in range(1, 100):
        for look in range(LOOKS):  # three of four idle, while the learner waits for what the fourth plays
            scaler.look(step * 10.0 + look / 2, 3, True)
        assert scaler.step(step * 10.0 + 10, reported(9.0, 1.0)) <= 4


def test_a_straggler_is_no_want_of_actors():
    scaler = Autoscaler(AutoscaleSettings(max=8), 2)
    for step in range(1, 100):
        scaler.look(step * 10.0, 0, True)
        assert scaler.step(step * 10.0 + 5, reported(9.0, 1.0, "straggler")) == 2


def test_checkpoints_and_weights_are_no_wait():
    scaler = Autoscaler(AutoscaleSettings(max=8), 2)
    for step in range(1, 100):
        scaler.look(step * 10.0, 0, True)
        seconds = {"wait": 0.05, "train": 1.0, "checkpoint": 5.0, "gather": 2.0, "publish": 2.0, "pack": 9.0}
        assert scaler.step(step * 10.0 + 5, StepReport(seconds=seconds)) == 2


def test_one_actor_fewer_takes_longer_than_one_more():
    more, fewer = Run(1.0, 4.0, ahead=True, start_s=0.0), Run(1.0, 0.5, ahead=True, count=4)
    while more.scaler.count == 1:
        more.step()
    while fewer.scaler.count == 4:
        fewer.step()
    assert more.now <= (ENOUGH + 2) * 4 and fewer.now > QUIET_S


@pytest.mark.parametrize(
    ("actors", "words"),
    [
        ({"count": 5, "autoscale": {"max": 4}}, "autoscale.max=4"),
        ({"autoscale": {"min": 2, "max": 4}}, "autoscale.min=2"),
        ({"autoscale": {"max": 4, "target": 0.5}}, "target_learner_wait"),
    ],
)
def test_a_size_outside_of_the_bounds_is_refused(actors, words):
    with pytest.raises(Exception, match=words):
        build({"name": "x", "steps": 0, "model": {"make": {}}, "environment": {"name": "signs"}, "actors": actors})
    assert ActorSettings(count=3, autoscale=AutoscaleSettings(max=4)).autoscale.min == 1
