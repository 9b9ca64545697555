"""Named parts of the reward are means over the turns that have them, in what a step reports."""

import numpy as np

from learner.batches.batch import report_of
from protocols.turns import Group, Role, Turn

IDS, LOGPROBS = np.ones(2, np.int32), np.full(2, -1.0, np.float32)


def turn(number: int, parts: dict | None) -> Turn:
    extra = {} if parts is None else {"parts": parts}
    return Turn(bytes(16), 0, number, -1, IDS, IDS, LOGPROBS, ((0, 0),), Role.ATTEMPT, number, 0, extra=extra)


def test_each_part_is_the_mean_of_those_that_have_it():
    group = Group(bytes(16), 0, (turn(0, {"right": 1.0, "short": 0.2}), turn(1, {"right": 0.0}), turn(2, None)))
    assert report_of([group], 0).reward_parts == {"right": 0.5, "short": 0.2}
    assert report_of([], 0).reward_parts == {}
