"""A run of several environments has figures of each, in what a step reports."""

import numpy as np
import pytest

from learner.batches.batch import report_of
from protocols.turns import MIXED_FROM, Group, Role, Turn

IDS, LOGPROBS = np.ones(2, np.int32), np.full(2, -1.0, np.float32)
NONE = np.zeros(0, np.int32)


def attempt(number: int, reward: float, success: bool | None = None) -> Turn:
    extra = {} if success is None else {"success": success}
    arrays = (IDS, IDS, LOGPROBS, ((0, 0),))
    return Turn(bytes(16), 0, number, -1, *arrays, Role.ATTEMPT, number, 0, reward=reward, extra=extra)


def broken(number: int, parent: int) -> Turn:
    extra = {"error": "it hung", "kind": "hung"}
    return Turn(
        bytes(16), 0, number, parent, NONE, NONE, NONE.astype(np.float32), (), Role.ERROR, parent, 0, extra=extra
    )


def group(label: str | None, *turns: Turn) -> Group:
    return Group(bytes(16), 0, turns, {} if label is None else {MIXED_FROM: label})


def test_groups_rewards_and_successes_are_told_by_environment():
    found = report_of(
        [
            group("shop", attempt(0, 1.0, True), attempt(1, 0.5, False)),
            group("sums", attempt(0, -1.0, False), attempt(1, 0.0, False)),
            group("shop", attempt(0, 0.0, False), attempt(1, 0.5, True)),
        ],
        0,
    )
    assert found.groups_by_environment == {"shop": 2, "sums": 1}
    assert found.reward_by_environment == {"shop": 0.5, "sums": -0.5}
    assert found.success_by_environment == {"shop": 0.5, "sums": 0.0}
    assert found.reward == pytest.approx(1 / 6), "of all attempts, whichever environment they are of"


def test_an_episode_that_broke_off_is_in_no_figure_of_its_environment():
    found = report_of([group("shop", attempt(0, 1.0, True), attempt(1, 0.0, False), broken(2, 1))], 0)
    assert found.groups_by_environment == {"shop": 1}
    assert found.reward_by_environment == found.success_by_environment == {"shop": 1.0}


def test_an_environment_of_which_nothing_is_known_has_a_count_alone():
    found = report_of([group("shop", attempt(0, 1.0)), group("sums", broken(0, -1))], 0)
    assert found.groups_by_environment == {"shop": 1, "sums": 1}
    assert found.reward_by_environment == {"shop": 1.0} and found.success_by_environment == {}


def test_a_run_of_one_environment_has_none_of_them():
    found = report_of([group(None, attempt(0, 1.0, True))], 0)
    assert found.groups_by_environment == found.reward_by_environment == found.success_by_environment == {}
