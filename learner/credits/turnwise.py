"""turnwise: the reward of the turn, less the mean of its turn number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.credit_config import TurnwiseCredit
from learner.credits import flat, scored, telling
from protocols.turns import MIXED_FROM, Group, Turn


def turnwise(batch: Sequence[Group], settings: TurnwiseCredit) -> list[np.ndarray]:
    """The turn's reward less the mean reward of the turns of the same number, so that late turns are not favoured for
    being late. The mean is over the batch or the group; in a run of several environments, over those of the batch that
    are of the same one.

    Turns of an episode that broke off take no part; an answer for which there was no room was not given, and has no
    part either.

    Where a policy decides how many turns there are, the mean is over those that got so far, which is biased.
    """
    told = [telling(group.turns) for group in batch]
    if settings.baseline == "group":
        means = [_mean_by_index(turns) for turns in told]
    else:
        places = [group.extra.get(MIXED_FROM) for group in batch]  # a hard environment is no reason to do less of it
        shared = {
            place: _mean_by_index(
                [turn for turns, other in zip(told, places, strict=True) if other == place for turn in turns]
            )
            for place in set(places)
        }
        means = [shared[place] for place in places]
    return [
        np.array([turn.reward - mean.get(turn.index, turn.reward) for turn in group.turns], np.float32)
        for group, mean in zip(batch, means, strict=True)
    ]


def _mean_by_index(turns: Sequence[Turn]) -> dict[int, float]:
    rewards: dict[int, list[float]] = defaultdict(list)
    for turn in turns:
        if scored(turn):
            rewards[turn.index].append(turn.reward)
    return {index: values[0] if flat(values) else float(np.mean(values)) for index, values in rewards.items()}
