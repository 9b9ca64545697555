"""raw: the reward of the turn, and which turns are kept (RISE, arXiv 2407.18219)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from learner.credit_config import RawCredit
from learner.credits import scored, telling
from protocols.turns import Group, Turn


def raw(batch: Sequence[Group], settings: RawCredit) -> list[np.ndarray]:
    """The turn's reward, NaN where `keep` leaves the turn out. A reflection goes with the attempt that it leads to.

    RISE has one training example a turn, and these filters of them. `better` keeps an episode's first turn, which has
    none before it, as the authors' code does. `best` keeps one turn an episode, the first of equals, as the paper says
    it; the authors' code keeps every turn that no earlier one exceeds. `success` keeps rewards of 1 and above.
    """
    return [_kept(group.turns, settings.keep) for group in batch]


def _kept(turns: Sequence[Turn], keep: str) -> np.ndarray:
    rewards = np.array([turn.reward for turn in turns], np.float32)
    if keep == "all":
        return rewards
    episodes: dict[int, dict[int, float]] = defaultdict(dict)
    for turn in telling(turns):
        if scored(turn):
            episodes[turn.episode][turn.index] = turn.reward
    kept = {episode: _indices(by_index, keep) for episode, by_index in episodes.items()}
    chosen = [turn.index in kept.get(turn.episode, ()) for turn in turns]
    return np.where(chosen, rewards, np.float32(np.nan))


def _indices(rewards: dict[int, float], keep: str) -> set[int]:
    """The turn numbers of one episode that are kept, of a map of turn number to reward."""
    if keep == "success":
        return {index for index, reward in rewards.items() if reward >= 1}
    order = sorted(rewards)
    if keep == "best":
        return {max(order, key=rewards.__getitem__)}
    return {order[0]} | {index for before, index in pairwise(order) if rewards[index] > rewards[before]}
