"""reflection: the reward of the retry, on the reflection that led to it and nowhere else (arXiv 2505.24726)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.credit_config import ReflectionCredit
from learner.credits import scored, telling
from learner.credits.group import relative
from protocols.turns import Group, Role, Turn


def reflection(batch: Sequence[Group], settings: ReflectionCredit) -> list[np.ndarray]:
    """Each reflection's retry against the group's other retries of the same turn number; NaN on all other turns.

    The retry is the answer that has the reflection's episode and turn number. A reflection without one, because its
    episode broke off, is not trained and does not move the mean. What is not trained may still be held to the start
    model (`objective.anchor`).
    """
    return [_of_group(group.turns, settings.std) for group in batch]


def _of_group(turns: Sequence[Turn], std: bool) -> np.ndarray:
    answers: dict[int, dict[int, float]] = defaultdict(dict)  # turn number -> episode -> reward
    for turn in telling(turns):
        if scored(turn):
            answers[turn.index][turn.episode] = turn.reward
    worth = {
        (index, episode): value
        for index, rewards in answers.items()
        for episode, value in zip(rewards, relative(list(rewards.values()), std), strict=True)
    }
    return np.array(
        [worth.get((t.index, t.episode), np.nan) if t.role is Role.REFLECTION else np.nan for t in turns], np.float32
    )
