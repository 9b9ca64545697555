"""turnwise: the reward of the turn, less the mean of its turn number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from learner.credit_config import TurnwiseCredit
from learner.credits import flat, scored, telling
from protocols.turns import MIXED_FROM, Group, Role, Turn

Baseline = Callable[[Turn], float]
Counted = dict[tuple[int, bool], np.ndarray]


def turnwise(batch: Sequence[Group], settings: TurnwiseCredit) -> list[np.ndarray]:
    """The turn's reward less the mean reward of the turns of the same number, so that late turns are not favoured for
    being late. The mean is over the group, the batch, or all other groups of it; in a run of several environments, over
    those of the batch that are of the same one.

    Turns of an episode that broke off take no part; an answer for which there was no room was not given, and has no
    part either. Verifications are compared with the verifications of the same number alone.

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


def _compared(turn: Turn) -> tuple[int, bool]:
    return turn.index, turn.role is Role.VERIFICATION


def _has_worth(turn: Turn) -> bool:
    return scored(turn) or turn.role is Role.VERIFICATION


def _of_group(turns: Sequence[Turn]) -> Baseline:
    mean = _means(turns)
    return lambda turn: mean.get(_compared(turn), turn.reward)


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
    sums = [_sums(turns) for turns in told]
    totals: dict[object, Counted] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for place, own in zip(places, sums, strict=True):
        for compared, counted in own.items():
            totals[place][compared] = totals[place][compared] + counted
    return [_of_others(totals[place], own) for place, own in zip(places, sums, strict=True)]


def _of_others(totals: Counted, own: Counted) -> Baseline:
    rest = {compared: counted - own.get(compared, 0.0) for compared, counted in totals.items()}
    whole = np.sum(list(rest.values()), axis=0) if rest else np.zeros(2)

    def mean(turn: Turn) -> float:
        total, count = found if (found := rest.get(_compared(turn), np.zeros(2)))[1] else whole
        return total / count if count else turn.reward

    return mean


def _sums(turns: Sequence[Turn]) -> Counted:
    """float64[2] by what is compared: the rewards in all, and how many there are."""
    sums: Counted = defaultdict(lambda: np.zeros(2))
    for turn in turns:
        if _has_worth(turn):
            sums[_compared(turn)] = sums[_compared(turn)] + (turn.reward, 1)
    return sums


def _means(turns: Sequence[Turn]) -> dict[tuple[int, bool], float]:
    rewards: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for turn in turns:
        if _has_worth(turn):
            rewards[_compared(turn)].append(turn.reward)
    return {compared: values[0] if flat(values) else float(np.mean(values)) for compared, values in rewards.items()}
