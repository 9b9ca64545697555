"""Credit: what each turn of a batch is worth, before any loss sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from learner.config import CreditSettings
from protocols.turns import Group, Role, Turn

EPSILON = 1e-6  # keeps the division by a group's deviation finite


def scored(turn: Turn) -> bool:
    """Whether the reward is the turn's own: a reflection repeats that of its attempt, an error has none."""
    return turn.role not in (Role.REFLECTION, Role.ERROR)


def credit(batch: Sequence[Group], settings: CreditSettings) -> list[np.ndarray]:
    """The advantage of every turn: one float32[turns] a group, 0 for turns of role error.

    `raw` is the turn's reward (RISE's code). `turnwise` subtracts the mean reward of the turns of the same number, so
    that late turns are not favoured for being late. `group` is GRPO's: the return of the episode, relative to the
    other episodes of its group (arXiv 2402.03300; without `std`, Dr. GRPO, arXiv 2503.20783).
    """
    assign: Callable[[Sequence[Group], CreditSettings], list[np.ndarray]]
    assign = {"raw": _raw, "turnwise": _turnwise, "group": _group_relative}[settings.name]
    advantages = assign(batch, settings)
    for group, values in zip(batch, advantages, strict=True):
        values[[turn.role is Role.ERROR for turn in group.turns]] = 0.0
    return advantages


def _rewards(group: Group) -> np.ndarray:
    return np.array([turn.reward for turn in group.turns], np.float32)


def _raw(batch: Sequence[Group], settings: CreditSettings) -> list[np.ndarray]:
    return [_rewards(group) for group in batch]


def _turnwise(batch: Sequence[Group], settings: CreditSettings) -> list[np.ndarray]:
    if settings.baseline == "group":
        means = [_mean_by_index(group.turns) for group in batch]
    else:
        means = [_mean_by_index([turn for group in batch for turn in group.turns])] * len(batch)
    return [
        np.array([turn.reward - mean.get(turn.index, turn.reward) for turn in group.turns], np.float32)
        for group, mean in zip(batch, means, strict=True)
    ]


def _mean_by_index(turns: Sequence[Turn]) -> dict[int, float]:
    rewards: dict[int, list[float]] = defaultdict(list)
    for turn in turns:
        if scored(turn):
            rewards[turn.index].append(turn.reward)
    return {index: float(np.mean(values)) for index, values in rewards.items()}


def _group_relative(batch: Sequence[Group], settings: CreditSettings) -> list[np.ndarray]:
    return [_relative_returns(group, settings.std) for group in batch]


def _relative_returns(group: Group, std: bool) -> np.ndarray:
    returns: dict[int, float] = {}
    for turn in group.turns:
        returns[turn.episode] = returns.get(turn.episode, 0.0) + (turn.reward if scored(turn) else 0.0)
    values = np.array(list(returns.values()), np.float64)
    relative = values - values.mean() if len(values) else values
    if std and len(values):
        relative = relative / (values.std() + EPSILON)
    by_episode = dict(zip(returns, relative, strict=True))
    return np.array([by_episode[turn.episode] for turn in group.turns], np.float32)
