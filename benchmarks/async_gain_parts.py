"""The environment of `benchmarks.async_gain`: signs that take their time to answer."""

from __future__ import annotations

import time
from bisect import bisect_right
from math import log
from zlib import crc32

import numpy as np

from actors.environments.signs import Signs

SHORT_S = 0.1
HEAVY_MEAN_S, HEAVY_SIGMA, HEAVY_MOST_S = 0.5, 1.0, 10.0


class SlowSigns(Signs):
    """Signs whose answer takes as long as the stage of the run asks for, drawn anew for each episode.

    `stages` are [first place, latency]: the place of a group is its place in the order of leases, and the latency is
    `none`, `short` (SHORT_S always) or `heavy` (lognormal, HEAVY_MEAN_S on average, at most HEAVY_MOST_S). What is
    drawn depends on the run's seed (`first_seed`), the task, the place and the episode alone, so runs that differ only
    in their speed meet the same latencies.
    """

    blocking = True

    def __init__(self, feedback: str = "binary", stages: tuple = ((0, "none"),), first_seed: int = 0):
        super().__init__(feedback)
        self._places, self._latencies = zip(*stages, strict=True)
        self._first_seed = first_seed

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        time.sleep(self._latency_s())
        return super().act(text)

    def _latency_s(self) -> float:
        place = self._seed - self._first_seed  # of the group, plus the number of the episode: close enough
        kind = self._latencies[bisect_right(self._places, place) - 1]
        if kind != "heavy":
            return SHORT_S if kind == "short" else 0.0
        draw = np.random.default_rng([self._seed, crc32(self.task["id"].encode())])
        return min(draw.lognormal(log(HEAVY_MEAN_S) - HEAVY_SIGMA**2 / 2, HEAVY_SIGMA), HEAVY_MOST_S)
