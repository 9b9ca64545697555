"""trajectory: good trajectories, and the revisions that lead back to them (Agent-R, arXiv 2501.11425)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.credit_config import TrajectoryCredit
from learner.credits import left_out
from learner.sequences import paths
from protocols.turns import Group, Role, Turn


def trajectory(batch: Sequence[Group], settings: TrajectoryCredit) -> list[np.ndarray]:
    """The largest score of the ends that a turn leads to, NaN where that is not above `settings.above`, nor above the
    `alpha` by which the group's rollout chose its good ends.

    The score of an end is what the environment says that the episode was worth, else the reward of its last action.
    Of ends without a revision the best `settings.good` count, the first of equals, and all demonstrations. Where an
    episode broke off, so that its last turn neither terminated nor truncated it, is no end.
    What comes after a revision does not speak for what came before it: the loss is off on the bad prefix, and on for
    the revision and the good suffix. A prefix that also leads to a good end without a revision is trained for that.

        a (1) -> b (nan) -> revision (1) -> c (1), reward 1
              `-> d (1), reward 1
    """
    return [_of_group(group, settings) for group in batch]


def _of_group(group: Group, settings: TrajectoryCredit) -> np.ndarray:
    worth = np.full(len(group.turns), -np.inf, np.float32)
    untold = left_out(group.turns)
    found = [path for path in paths(group) if path[-1].turn not in untold]
    plain = [path for path in found if not any(map(_corrects, path))]
    ended = sorted((path for path in plain if _ends(path[-1])), key=lambda path: -_score(path[-1]))
    worse = {path[-1].turn for path in plain} - {path[-1].turn for path in ended[: settings.good]}
    for path in found:
        if path[-1].turn in worse:
            continue
        for turn in reversed(path):
            worth[turn.turn] = max(worth[turn.turn], _score(path[-1]))
            if turn.role is Role.REVISION:
                break
    above = max(settings.above, group.extra.get("alpha", settings.above))
    return np.where(worth > above, worth, np.float32(np.nan))


def _score(end: Turn) -> float:
    return end.extra.get("score", end.reward)


def _ends(turn: Turn) -> bool:
    return turn.terminated or turn.truncated


def _corrects(turn: Turn) -> bool:
    return turn.role is Role.REVISION or turn.extra.get("demonstration", False)
