"""group: the return of the episode, relative to the other episodes of its group (GRPO, arXiv 2402.03300)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.credit_config import GroupCredit, OverlongSettings
from learner.credits import flat, grown_too_long, left_out, scored
from protocols.turns import INTERNALISED, MIXED_FROM, Group, Role, Turn

EPSILON = 1e-6  # keeps the division by a group's deviation finite


def group(batch: Sequence[Group], settings: GroupCredit) -> list[np.ndarray]:
    """(return - mean) / std over the episodes of a group, on all turns of the episode; 0 where it is flat.

    An episode that broke off takes no part. One that grew too long counts as wrong: it is worth no more than any other
    episode of the group, nor than 0.

    Without `std` it is Dr. GRPO's (arXiv 2503.20783). With `overlong` each response's punishment counts as reward.
    `leave_one_out` is RLOO's baseline (arXiv 2402.14740): return - mean of the others = n / (n - 1) (return - mean).
    Mean and std of the `batch` are REINFORCE++'s (arXiv 2501.03262), each episode weighing the same; in a run of
    several environments they are over the groups of the same one.
    """
    returns = [returns_of(one.turns, settings.overlong) for one in batch]
    worths: list[np.ndarray] = [np.zeros(0)] * len(batch)
    for places in _of_one_environment(batch):
        for place, worth in zip(
            places, _compared([list(returns[at].values()) for at in places], settings), strict=True
        ):
            worths[place] = worth
    found = [dict(zip(one, worth, strict=True)) for one, worth in zip(returns, worths, strict=True)]
    return [
        np.array([worth.get(turn.episode, np.nan) for turn in one.turns], np.float32)
        for one, worth in zip(batch, found, strict=True)
    ]


def _of_one_environment(batch: Sequence[Group]) -> list[list[int]]:
    """Places in the batch of the groups of each environment."""
    places: dict[object, list[int]] = defaultdict(list)
    for place, one in enumerate(batch):
        places[one.extra.get(MIXED_FROM)].append(place)
    return list(places.values())


def _compared(returns: list[list[float]], settings: GroupCredit) -> list[np.ndarray]:
    """float64[episodes] a group: each return less its baseline, over a deviation where there is one."""
    ends = np.cumsum([len(one) for one in returns])[:-1]
    if settings.baseline == "batch":
        around = np.split(relative([value for one in returns for value in one], std=False), ends)
    else:
        around = [_factor(len(one), settings) * relative(one, settings.std is True) for one in returns]
    if settings.std != "batch":
        return around
    return np.split(relative_to_zero(np.concatenate(around)), ends)


def _factor(count: int, settings: GroupCredit) -> float:
    return count / (count - 1) if settings.baseline == "leave_one_out" and count > 1 else 1.0


def returns_of(turns: Sequence[Turn], overlong: OverlongSettings | None = None) -> dict[int, float]:
    """What each episode of a group that tells something was worth in all, by its number."""
    returns: dict[int, float] = defaultdict(float)
    untold = left_out(turns)
    for turn in turns:
        if turn.turn in untold:
            continue
        returns[turn.episode] += turn.reward if scored(turn) else 0.0
        if overlong is not None and turn.role is not Role.ERROR and INTERNALISED not in turn.extra:  # once said
            returns[turn.episode] += punishment(len(turn.response), overlong)
    lowest = min([0.0, *returns.values()])
    return returns | {turn.episode: lowest for turn in turns if grown_too_long(turn)}


def relative(values: Sequence[float], std: bool) -> np.ndarray:
    """float64[n]: each value less the mean, over the standard deviation if `std`; exactly 0 where they are flat."""
    if flat(values):
        return np.zeros(len(values))
    around = np.asarray(values, np.float64) - np.mean(values)
    return around / (np.std(values) + EPSILON) if std else around


def relative_to_zero(values: np.ndarray) -> np.ndarray:
    """float64[n]: values that have their baseline off, over their standard deviation; 0 where all are 0."""
    return values / (np.std(values) + EPSILON) if len(values) else values


def punishment(tokens: int, settings: OverlongSettings) -> float:
    """What a response of so many tokens loses: 0, then linear, then `-penalty` (arXiv 2503.14476, equation 13)."""
    over = tokens - (settings.limit - settings.cache)
    return -settings.penalty * min(1.0, max(0.0, over / settings.cache))
