"""What holds new leases back, as people and the learner are told."""

from __future__ import annotations

import time
from collections.abc import Callable

from protocols import metrics

LIMITS = ("none", "actors", "replay", "staleness")
"""Nothing; no actor is ready; replay is near its cap, or its disk is full; the staleness bound."""


class Limit:
    """Counts seconds by what holds leases back. `tell` learns what that makes of a wait for groups, on each change."""

    def __init__(self, tell: Callable[[str], object]):
        self._tell, self._told = tell, ""
        self._seen = time.monotonic()
        for limit in LIMITS:
            metrics.ADMISSION_SECONDS.labels(limit=limit)

    def note(self, limit: str) -> None:
        """It is `limit` now, and was since the last note."""
        now = time.monotonic()
        metrics.ADMISSION_SECONDS.labels(limit=limit).inc(now - self._seen)
        self._seen = now
        wait = limit if limit in ("replay", "staleness") else "groups"
        if wait != self._told:
            self._told = wait
            self._tell(wait)
