"""attributing: the outcome of an episode, and beside it which of its steps were good (ADCA-GRPO, arXiv 2511.10395).

For step j of the K of episode i, r its flag as a number, R the return, and means over the episodes of the group:

    mu = mean_i mean_j r_ij      var = mean_i mean_j (r_ij - mu)^2      s_ij = (r_ij - mu) / sqrt(var + 1e-8)
    o_i = what credit `group` gives R_i
    c_ij = alpha s_ij + [j = K] o_i      A_ij = sum_{k >= j} c_ik, on every token of step j
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from learner.credit_config import AttributingCredit
from learner.credits import left_out, scored
from learner.credits.group import relative, returns_of
from protocols.turns import Group, Role, Turn

BASE = 0.2  # of a flag; all but cancels
EPSILON = 1e-8
DISAGREES = 0.2  # what a step weighs in `allocation` whose flag disagrees with the outcome; others weigh 1
WORTH = 0.5  # episodes that return more count as good where steps have no flag

Steps = dict[int, bool | None]
"""Flags by the step's number in its episode, in order; None where it has none."""


def attributing(batch: Sequence[Group], settings: AttributingCredit) -> list[np.ndarray]:
    """See the module. A step is what has one turn number in an episode: a reflection is part of the answer it leads to.

    Equal to credit `group` where alpha is 0, and where all flags of a group are the same.
    """
    return [_of_group(one.turns, settings) for one in batch]


def flagged(groups: Sequence[Group]) -> tuple[int, int, int]:
    """How many steps there are of episodes that tell something, how many of them have a flag, and are good by it."""
    flags = [flag for group in groups for steps in _steps(group.turns).values() for flag in steps.values()]
    return len(flags), sum(flag is not None for flag in flags), sum(flag is True for flag in flags)


def _of_group(turns: Sequence[Turn], settings: AttributingCredit) -> np.ndarray:
    returns = returns_of(turns)
    outcomes = dict(zip(returns, relative(list(returns.values()), std=True), strict=True))
    steps = _steps(turns)
    numbers = {episode: _numbers(found, returns[episode], settings) for episode, found in steps.items()}
    worth = _compared(numbers, settings)
    advantages: dict[tuple[int, int], float] = {}
    for episode, found in steps.items():
        each = _each(worth[episode], outcomes[episode], settings)
        to_go = np.cumsum(each[::-1])[::-1]
        advantages |= {(episode, index): value for index, value in zip(found, to_go, strict=True)}
    return np.array([advantages.get((turn.episode, turn.index), np.nan) for turn in turns], np.float32)


def _steps(turns: Sequence[Turn]) -> dict[int, Steps]:
    """The steps of each episode that tells something and has any."""
    untold, found = left_out(turns), defaultdict(dict)
    for turn in turns:
        if turn.role is Role.ERROR or turn.turn in untold:
            continue
        flag = turn.extra.get("good") if scored(turn) else None
        found[turn.episode][turn.index] = found[turn.episode].get(turn.index) if flag is None else bool(flag)
    return {episode: dict(sorted(steps.items())) for episode, steps in found.items()}


def _numbers(steps: Steps, value: float, settings: AttributingCredit) -> np.ndarray:
    """float64[K]: r of each step."""
    good = value > WORTH
    flags = np.array([good if flag is None else flag for flag in steps.values()])
    if settings.scheme == "decouple":
        return np.where(flags, 1.0, -1.0)  # times BASE, which `_compared` does where equal flags have cancelled
    weights = np.where(flags == good, 1.0, DISAGREES)
    return (1.0 if good else -1.0) * weights / weights.sum()


def _compared(numbers: Mapping[int, np.ndarray], settings: AttributingCredit) -> Mapping[int, np.ndarray]:
    """s of each step of each episode: how far above the group's mean, in its standard deviations."""
    if not numbers:
        return {}

    def mean(values: Sequence[np.ndarray]) -> float:
        return float(np.mean(np.concatenate(values) if settings.pool else [np.mean(one) for one in values]))

    center, base = mean(list(numbers.values())), BASE if settings.scheme == "decouple" else 1.0
    around = {episode: base * (values - center) for episode, values in numbers.items()}
    spread = np.sqrt(mean([values**2 for values in around.values()]) + EPSILON)
    return {episode: values / spread for episode, values in around.items()}


def _each(worth: np.ndarray, outcome: float, settings: AttributingCredit) -> np.ndarray:
    """float64[K]: c of each step."""
    if settings.distribution == "only_prm":
        each = worth.copy()
    else:
        each = settings.alpha * worth
        each[slice(None) if settings.distribution == "all_steps" else slice(-1, None)] += outcome
    return each / np.sqrt(len(each)) if settings.shorten else each
