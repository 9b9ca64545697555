"""The order in which tasks are played: shuffled anew each epoch, the same for the same seed, without end.

With a curriculum the tasks carry a `level`, an int from 0, and are unlocked level by level. A span is a stretch of
positions with one set of tasks:

    position    0 ......... 700 ....... 1900 ...
    span        level 0     level 1     level 2      begins at the first position that is not leased when a level ends
    epoch       0  1  2  3  4  5  6  7  8 ...        numbered on, so that (epoch, task) never comes twice
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Protocol

import numpy as np

from actors.config import CurriculumSettings
from protocols.errors import SettingError


@dataclass(frozen=True, slots=True)
class LevelSpan:
    """From position `first` and epoch `epoch` on, the tasks at `indices` (int64[n]) are played."""

    first: int
    epoch: int
    level: int | None
    indices: np.ndarray


class Order(Protocol):
    """What leases are made from."""

    @property
    def level(self) -> int | None:
        """The newest level that is played; None without a curriculum."""
        ...

    @property
    def state(self) -> dict:
        """What a resumed run needs to go on alike, in JSON values."""
        ...

    def task(self, position: int) -> tuple[int, dict]:
        """(epoch, task) of the `position`-th play; the pair never comes twice."""
        ...

    def closed(self, task: dict, success: float | None, position: int) -> bool:
        """Counts a group of `task` that ended; True where that raised the level from `position` on."""
        ...


class TaskOrder:
    """Position 0, 1, 2, ... -> task. Keeps one permutation, that of the epoch last asked for, and no history.

    `state` is what `state` said in an earlier incarnation of the run; positions then map to tasks as they did. Raises
    SettingError where a curriculum meets tasks without levels.
    """

    def __init__(
        self, tasks: Sequence[dict], seed: int, curriculum: CurriculumSettings | None = None, state: dict | None = None
    ):
        if not len(tasks):
            raise ValueError("an order needs at least one task")
        self.tasks, self.seed = tasks, seed
        self._curriculum, state = curriculum, state or {}
        self._spans: list[LevelSpan] = []
        self._epoch, self._permutation = -1, np.empty(0, np.int64)
        if curriculum is None:
            self._spans.append(LevelSpan(0, 0, None, np.arange(len(tasks))))
            return
        self._levels = np.array([_level(task) for task in tasks])
        self._window: deque[float] = deque(state.get("window", ()), curriculum.window)
        for first, level in state.get("spans", [(0, int(self._levels.min()))]):
            self._begin(first, level)

    @property
    def level(self) -> int | None:
        """The newest level that is played; None without a curriculum."""
        return self._spans[-1].level

    @property
    def state(self) -> dict:
        """What a resumed run needs to go on alike, in JSON values: nothing without a curriculum.

        `spans` are [first position, level], `window` the successes that count towards the next level.
        """
        if self._curriculum is None:
            return {}
        return {"spans": [[span.first, span.level] for span in self._spans], "window": list(self._window)}

    def task(self, position: int) -> tuple[int, dict]:
        """(epoch, task) of the `position`-th play; within an epoch each task of its span occurs at most once."""
        span = self._spans[bisect_right(self._spans, position, key=lambda span: span.first) - 1]
        epochs, within = divmod(position - span.first, len(span.indices))
        epoch = span.epoch + epochs
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch))))
            self._epoch, self._permutation = epoch, generator.permutation(len(span.indices))
        return epoch, self.tasks[int(span.indices[self._permutation[within]])]

    def closed(self, task: dict, success: float | None, position: int) -> bool:
        """Counts a group of `task` that ended; `success` is the share of its episodes that succeeded.

        True when that raised the level: positions from `position` on, none of which may be in play, are of the next.
        """
        if self._curriculum is None or success is None or task["level"] != self.level:
            return False
        self._window.append(float(success))
        mastered = fsum(self._window) / len(self._window) >= self._curriculum.threshold
        higher = self._levels[self._levels > self.level]
        if len(self._window) < self._curriculum.window or not mastered or not len(higher):
            return False
        self._begin(position, int(higher.min()))
        self._window.clear()
        return True

    def _begin(self, first: int, level: int) -> None:
        played = (
            self._levels == level
            if self._curriculum is not None and self._curriculum.only_newest
            else self._levels <= level
        )
        epoch = 0
        if self._spans:
            last = self._spans[-1]
            epoch = last.epoch + -(-(first - last.first) // len(last.indices))  # one that has begun is not gone on with
        self._spans.append(LevelSpan(first, epoch, level, np.flatnonzero(played)))
        self._epoch = -1  # whoever looked ahead saw the older span


def _level(task: dict) -> int:
    level = task.get("level")
    if not isinstance(level, int) or level < 0:
        problem = f"needs tasks with a `level` from 0; task {task['id']!r} has {level!r}"
        raise SettingError("curriculum", problem, "Leave it out, or play an environment whose tasks have levels")
    return level
