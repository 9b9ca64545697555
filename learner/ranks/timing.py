"""Where the seconds of the learner go, for its report and for Prometheus."""

from __future__ import annotations

import time

from protocols import metrics


class timed:
    """Adds the seconds that a block takes to `seconds[phase]`, and to those that the learner spent in `state`."""

    STATES = {"train": "training", "commit": "training", "gather": "weights", "publish": "weights"}

    def __init__(self, seconds: dict, phase: str):
        self._seconds, self._phase = seconds, phase
        self.state = self.STATES.get(phase, phase)

    def __enter__(self) -> timed:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        passed = time.monotonic() - self._began
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + passed
        metrics.LEARNER_SECONDS.labels(state=self.state).inc(passed)
