"""The bound that a run finds for itself follows what staleness and waiting cost, and noise seldom moves it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from learner.bound import AGREED, Bound, most_of
from protocols import strict_json

Of = Callable[[int, int], float]
"""What a step has at a bound, after so many steps."""
WAITS = {0: 0.5, 1: 0.2, 2: 0.05}  # shares of the step, no more from 3 on: a learner that needs three batches ahead


def waits(bound: int, step: int) -> float:
    return WAITS.get(bound, 0.0)


def fading(rate: float) -> Of:
    """Samples that lose so much of their effect with each step of staleness."""
    return lambda bound, step: math.exp(-rate * bound)


def simulated(effective: Of, waited: Of, steps: int, *, most: int = 64, noise: float = 0.0, seed: int = 0) -> list[int]:
    """The bound after each step."""
    bound, drawn, found = Bound("auto", most), random.Random(seed), []
    for step in range(1, steps + 1):
        share = min(1.0, effective(bound.now, step) * (1 + drawn.gauss(0, noise)))
        bound.stepped(step, share, min(1.0, max(0.0, waited(bound.now, step) + drawn.gauss(0, noise))))
        found.append(bound.now)
    return found


def moves(found: list[int]) -> int:
    return sum(one != other for one, other in pairwise(found))


def test_it_begins_fresh_and_rises_by_one_until_the_learner_waits_no_more():
    found = simulated(fading(0.01), waits, 300)
    assert found[: AGREED - 1] == [0] * (AGREED - 1) and found[AGREED - 1] == 1
    assert all(other - one in (0, 1) for one, other in pairwise(found)) and found[-1] == 3


def test_it_rises_to_what_actors_can_hold_where_staleness_costs_nothing_and_no_further():
    assert max(simulated(fading(0.0), lambda bound, step: 1 / (bound + 2), 400, most=6)) == 6
    assert most_of(320, 64) == 6 and most_of(48, 64) == 2 and most_of(1, 64) == 2


def test_it_stays_below_where_samples_lose_more_than_is_waited_for():
    assert simulated(fading(0.1), waits, 400)[-1] == 2  # the third would spare 5 % and cost 10 %
    assert simulated(fading(0.8), waits, 400)[-1] == 0


def test_it_falls_when_the_effective_sample_size_drops_and_at_once_where_it_drops_far():
    found = simulated(lambda bound, step: fading(0.01 if step <= 200 else 0.3)(bound, step), waits, 400)
    assert found[199] == 3 and found[199 + AGREED] < 3 and found[-1] == 1


def test_what_trainer_and_sampler_differ_by_in_fresh_groups_is_laid_to_no_bound():
    found = simulated(lambda bound, step: 0.7 * fading(0.01)(bound, step), waits, 300)
    assert found == simulated(fading(0.01), waits, 300)


@pytest.mark.parametrize("rate", [0.01, 0.0])
def test_a_rise_that_spares_nothing_is_taken_back_and_tried_again_when_the_run_is_twice_as_long(rate):
    found = simulated(fading(rate), lambda bound, step: 0.6, 300)
    tries = [step for step, (one, other) in enumerate(pairwise(found), 2) if other > one]
    assert max(found) == 1 and found[-1] == 0 and len(tries) > 2
    assert all(later >= 2 * sooner for sooner, later in pairwise(tries))


@pytest.mark.parametrize("seed", range(4))
def test_noise_as_large_as_what_is_measured_moves_it_rarely(seed):
    found = simulated(fading(0.03), waits, 3000, noise=0.05, seed=seed)
    assert moves(found) <= 12 and set(found[200:]) <= {1, 2, 3}


def test_what_one_step_measures_moves_nothing():
    bound = Bound("auto", 9)
    for step in range(1, 200):
        outlier = step % AGREED == 0
        bound.stepped(step, 1.0, 0.0 if outlier else 0.5)
        assert bound.now == 0


def test_steps_on_groups_of_the_bound_before_do_not_count():
    bound = Bound("auto", 9)
    for step in range(1, AGREED + 1):
        bound.stepped(step, 1.0, 0.5)
    assert bound.now == 1
    for step in range(AGREED + 1, AGREED + 3):  # two batches may be in play that were leased before
        bound.stepped(step, 0.01, 0.0)
    for step in range(AGREED + 3, 2 * AGREED + 2):
        bound.stepped(step, 1.0, 0.4)
        assert bound.now == 1
    bound.stepped(2 * AGREED + 2, 1.0, 0.4)
    assert bound.now == 2


def test_groups_that_were_leased_under_a_larger_bound_may_be_claimed_until_they_are_used():
    state = Bound("auto", 9).state | {"bound": 8, "agreed": AGREED - 1, "aim": 0, "steps": AGREED}
    seen = {"effective": 1.0, "waited": 0.1, "until": 1}
    bound = Bound("auto", 9, state | {"seen": {str(known): seen for known in range(9)}})
    assert bound.of_claims == 8
    bound.stepped(100, 0.01, 0.0)
    assert bound.now < 8 and bound.of_claims == 8
    for step in range(101, 110):
        assert bound.of_claims == 8
        bound.stepped(step, 1.0, 0.0)
    assert bound.of_claims == bound.now


def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_ended():
    whole, parted, drawn = Bound("auto", 9), Bound("auto", 9), random.Random(0)
    for step in range(1, 300):
        effective, waited = drawn.uniform(0.9, 1.0), drawn.uniform(0.0, 0.3)
        for bound in (whole, parted):
            bound.stepped(step, effective, waited)
        parted = Bound("auto", 9, json.loads(json.dumps(parted.state)))
        assert (parted.now, parted.of_claims, parted.state) == (whole.now, whole.of_claims, whole.state)


def test_a_batch_without_log_probs_that_are_numbers_teaches_nothing_and_can_be_kept():
    spoiled, plain = Bound("auto", 9), Bound("auto", 9)
    for step in range(1, 50):
        effective = float("nan") if step % 7 == 0 else 0.99
        spoiled.stepped(step, effective, waits(spoiled.now, step))
        if step % 7:
            plain.stepped(step, effective, waits(plain.now, step))
        spoiled = Bound("auto", 9, json.loads(strict_json.dumps(spoiled.state)))
    assert spoiled.now == plain.now > 0
    assert all(math.isfinite(seen["effective"]) for seen in spoiled.state["seen"].values())


def test_a_run_that_is_resumed_with_fewer_actors_begins_at_what_they_can_hold():
    found = Bound("auto", 9)
    for step in range(1, 100):
        found.stepped(step, 1.0, 1 / (found.now + 2))
    assert found.now > 2
    assert Bound("auto", 2, found.state).now == 2


def test_a_step_without_samples_says_nothing_and_a_number_stays_what_it_is():
    auto, fixed = Bound("auto", 9), Bound(4, 0)
    for step in range(1, 50):
        auto.stepped(step, None, 0.5)
        fixed.stepped(step, 0.1, 0.5)
    assert auto.now == 0 and (fixed.now, fixed.of_claims, fixed.state) == (4, 4, {})
