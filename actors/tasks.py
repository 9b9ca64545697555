"""The order in which tasks are played: shuffled anew each epoch, the same for the same seed, without end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TaskOrder:
    """Position 0, 1, 2, ... -> task. Keeps one permutation, that of the epoch last asked for, and no history."""

    def __init__(self, tasks: Sequence[dict], seed: int):
        if not len(tasks):
            raise ValueError("an order needs at least one task")
        self.tasks, self.seed = tasks, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def task(self, position: int) -> tuple[int, dict]:
        """(epoch, task) of the `position`-th play; within an epoch each task occurs exactly once."""
        epoch, place = divmod(position, len(self.tasks))
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch))))
            self._epoch, self._permutation = epoch, generator.permutation(len(self.tasks))
        return epoch, self.tasks[self._permutation[place]]
