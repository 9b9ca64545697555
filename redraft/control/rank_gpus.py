"""What the learner's ranks say of their GPUs: asked now and then, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from protocols.nvml import EVERY_S, Gpu


class RankGpus:
    """`look` asks `ranks`, Ray handles, again once they have answered; a rank that fails says so elsewhere."""

    def __init__(self, ranks: Sequence[Any]):
        self._ranks, self._asked, self._next = ranks, [], 0.0
        self.newest: dict[str, tuple[Gpu, ...]] = {}

    def look(self) -> None:
        if self._asked and len(ray.wait(self._asked, num_returns=len(self._asked), timeout=0)[0]) == len(self._asked):
            self._take()
        if self._ranks and not self._asked and time.monotonic() >= self._next:
            self._asked = [rank.gpus.remote() for rank in self._ranks]
            self._next = time.monotonic() + EVERY_S

    def _take(self) -> None:
        asked, self._asked = self._asked, []
        for number, answer in enumerate(asked):
            try:
                self.newest[f"learner-{number}"] = ray.get(answer)
            except RayError:
                self.newest.pop(f"learner-{number}", None)
