"""turnwise: the reward of the turn, less the mean of its turn number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from learner.credit_config import TurnwiseCredit
from learner.credits import flat, scored, telling
from protocols.turns import MIXED_FROM, Group, Turn

Baseline = Callable[[Turn], float]
Counted = dict[int, np.ndarray]


def turnwise(batch: Sequence[Group], settings: TurnwiseCredit) -> list[np.ndarray]:
    """The turn's reward less the mean reward of the turns of the same number, so that late turns are not favoured for
    being late. The mean is over the group, the batch, or all other groups of it; in a run of several environments, over
    those of the batch that are of the same one.

    Turns of an episode that broke off take no part; an answer for which there was no room was not given, and has no
    part either.

    Where a policy decides how many turns there are, each mean over the group or the batch is over those that got so
    far, the turn itself among them. That takes 1 / n off what a turn of n is worth, more where few get: late turns
    count for less than they are worth, and one that got there alone for nothing. The mean over the turns of all
    `others` groups does not depend on the turn itself: it changes what an update is by chance, and not what it is in
    the mean. Where no other group has a turn of that number it is over all their turns.
    """
    told = [telling(group.turns) for group in batch]
    means = [_of_group(turns) for turns in told] if settings.baseline == "group" else _of_batch(batch, told, settings)
    return [
        np.array([turn.reward - mean(turn) for turn in group.turns], np.float32)
        for group, mean in zip(batch, means, strict=True)
    ]


def _of_group(turns: Sequence[Turn]) -> Baseline:
    mean = _mean_by_index(turns)
    return lambda turn: mean.get(turn.index, turn.reward)


def _of_batch(batch: Sequence[Group], told: Sequence[Sequence[Turn]], settings: TurnwiseCredit) -> list[Baseline]:
    """Over groups of the same environment alone: a hard one is no reason to do less of it."""
    places = [group.extra.get(MIXED_FROM) for group in batch]
    if settings.baseline == "batch":
        shared = {
            place: _of_group(
                [turn for turns, other in zip(told, places, strict=True) if other == place for turn in turns]
            )
            for place in set(places)
        }
        return [shared[place] for place in places]
    sums = [_sums_by_index(turns) for turns in told]
    totals: dict[object, Counted] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for place, own in zip(places, sums, strict=True):
        for index, counted in own.items():
            totals[place][index] = totals[place][index] + counted
    return [_of_others(totals[place], own) for place, own in zip(places, sums, strict=True)]


def _of_others(totals: Counted, own: Counted) -> Baseline:
    rest = {index: counted - own.get(index, 0.0) for index, counted in totals.items()}
    whole = np.sum(list(rest.values()), axis=0) if rest else np.zeros(2)

    def mean(turn: Turn) -> float:
        total, count = found if (found := rest.get(turn.index, np.zeros(2)))[1] else whole
        return total / count if count else turn.reward

    return mean


def _sums_by_index(turns: Sequence[Turn]) -> Counted:
    """float64[2] by turn number: the rewards in all, and how many there are."""
    sums: Counted = defaultdict(lambda: np.zeros(2))
    for turn in turns:
        if scored(turn):
            sums[turn.index] = sums[turn.index] + (turn.reward, 1)
    return sums


def _mean_by_index(turns: Sequence[Turn]) -> dict[int, float]:
    rewards: dict[int, list[float]] = defaultdict(list)
    for turn in turns:
        if scored(turn):
            rewards[turn.index].append(turn.reward)
    return {index: values[0] if flat(values) else float(np.mean(values)) for index, values in rewards.items()}
