"""What the learner exports of its steps to Prometheus: where its seconds go, and the figures of the last step."""

from __future__ import annotations

import math
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


def export(report: dict) -> None:
    """Sets this process's Prometheus metrics to one step's report; a figure over nothing is NaN, or has no series."""
    gauges = {
        metrics.STEP: "step",
        metrics.LOSS: "loss",
        metrics.GRADIENT_NORM: "gradient_norm",
        metrics.ENTROPY: "entropy",
        metrics.MISMATCH: "mismatch_mean",
        metrics.EFFECTIVE_SAMPLES: "effective_samples",
        metrics.MASKED_SHARE: "masked_share",
        metrics.TRAINED_TOKENS: "trained_tokens",
    }
    for gauge, key in gauges.items():
        gauge.set(math.nan if report[key] is None else report[key])
    for phase, seconds in report["seconds"].items():
        metrics.STEP_SECONDS.labels(phase=phase).observe(seconds)
    metrics.REWARD.set_only(_numbered(report["reward_by_index"]))
    metrics.ACCURACY.set_only(_numbered(report["success_by_index"]))
    metrics.CUT_SHARE.set_only(report["cut_share"])
    metrics.UNPARSED_SHARE.set_only(report["unparsed_share"])
    lengths = report["response_tokens"]
    metrics.RESPONSE_TOKENS.set_only({role: found["mean"] for role, found in lengths.items()})
    metrics.LONGEST_RESPONSE.set_only({role: found["max"] for role, found in lengths.items()})
    for age, groups in report["staleness_counts"].items():
        for _ in range(groups):
            metrics.STALENESS.observe(int(age))


def _numbered(values: list[float]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}
