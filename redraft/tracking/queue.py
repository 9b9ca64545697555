"""Trackers: what a run tells TensorBoard always, and Weights & Biases and MLflow where its recipe asks for them.

Each tracker has a bounded queue and a thread of its own: a disk that is full or a network that hangs costs lines, which
are counted, and never time of the run. See redraft.tracking.backends for the trackers.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from protocols import metrics
from protocols.errors import SettingError, named
from protocols.evaluation import EvaluationSummary
from protocols.reports import StepLine
from redraft.config import PASSWORD, TrackingSettings

if TYPE_CHECKING:
    from redraft.recipe import Recipe
    from redraft.run import Run

log = logging.getLogger("redraft.trackers")
LONGEST = 1000  # lines that wait for one tracker
FLUSH_S = 30.0  # for what still waits when the run ends


def check(settings: TrackingSettings) -> None:
    """Raises SettingError for a tracker that is asked for and not installed."""
    for name in settings.asked:
        if importlib.util.find_spec(name) is None:
            raise SettingError(
                f"tracking.{name}", f"{name} is not installed", f"Run `pip install {name}`, or leave it out"
            )


# Names.


def of_step(line: StepLine) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, named in groups: `learner/loss`, `reward/turn_1`, `seconds/train`.

    The names are those that protocols/reports.py declares.
    """
    named = ((name, value) for name, _, value in line.measures() if name)
    return {key: number for name, value in named for key, number in _numbers(name, value)}


def of_evaluation(summary: EvaluationSummary) -> dict[str, float]:
    """The figures of an evaluation: `evaluation/accuracy/turn_1`, `evaluation/se/fix_rate`, `evaluation/greedy/...`."""
    return dict(_numbers("evaluation", summary.to_json()))


def _numbers(name: str, value) -> Iterator[tuple[str, float]]:
    """(name, number) of all finite numbers in a JSON value. Lists are by turn, the first is turn 1."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        for turn, inner in enumerate(value, 1):
            yield from _numbers(f"{_by_turn(name) or name}/turn_{turn}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _by_turn(name: str) -> str:
    """ "reward" of "reward_by_index", "" of a name that is not by turn."""
    found = re.fullmatch(r"(.+)_by_(?:index|turn)", name)
    return found[1] if found else ""


# Queues and threads.


@dataclass(frozen=True, slots=True)
class TrackedLine:
    """What one line says, at what time (seconds since 1970)."""

    step: int
    values: dict[str, float]
    time_s: float
    again: bool = False
    """Of a step that is played again, since the run was resumed from before it, or its ranks were started anew."""
    evaluation: bool = False


class Trackers:
    """All trackers of one run. `say(text, once=key)` tells people what went wrong."""

    def __init__(self, run: Run, recipe: Recipe, say: Callable[..., None]):
        from redraft.tracking.backends import KINDS

        self._played = max((StepLine.from_json(line).report.step for line in run.lines("metrics.jsonl")), default=0)
        names = ["tensorboard", *recipe.tracking.asked]
        self._outlets = [_Outlet(name, partial(KINDS[name], run, recipe), say) for name in names]

    def start(self, step: int) -> None:
        """The run begins, or goes on after this step."""
        for outlet in self._outlets:
            outlet.start(step)

    def step(self, line: StepLine) -> None:
        step = line.report.step
        self._put(TrackedLine(step, of_step(line), time.time(), step <= self._played))
        self._played = max(self._played, step)

    def evaluation(self, step: int, summary: EvaluationSummary) -> None:
        self._put(TrackedLine(step, of_evaluation(summary), time.time(), evaluation=True))

    def close(self, state: str) -> None:
        """The run has ended so. Returns when all is written, or after FLUSH_S."""
        until = time.monotonic() + FLUSH_S
        for outlet in self._outlets:
            outlet.end(state)
        for outlet in self._outlets:
            outlet.join(max(0.0, until - time.monotonic()))

    def _put(self, line: TrackedLine) -> None:
        for outlet in self._outlets:
            outlet.put(line)


class _Outlet:
    """One tracker behind its queue. `make(step)` opens it, and is tried again with each line until it can."""

    def __init__(self, name: str, make: Callable, say: Callable[..., None]):
        self._name, self._make, self._say = name, make, say
        self._waiting: queue.SimpleQueue[TrackedLine | str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, step: int) -> None:
        self._thread = threading.Thread(target=self._work, args=(step,), name=self._name, daemon=True)
        self._thread.start()

    def put(self, line: TrackedLine) -> None:
        if self._waiting.qsize() < LONGEST:
            self._waiting.put(line)
        else:
            self._lost(f"{LONGEST} lines wait for it")

    def end(self, state: str) -> None:
        self._waiting.put(state)

    def join(self, limit_s: float) -> None:
        if self._thread is None:
            return
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._lost(f"it had not ended after {FLUSH_S:.0f} s", self._waiting.qsize())

    def _work(self, step: int) -> None:
        tracker, line = None, None  # the first round only opens
        while not isinstance(line, str):
            try:
                tracker = tracker or self._make(step)
                if line is not None:
                    tracker.write(line)
            except Exception as error:  # whatever a tracker raises, the run goes on
                self._lost(named(error), line is not None)
            line = self._waiting.get()
        if tracker is not None:
            self._end(tracker, line)

    def _end(self, tracker, state: str) -> None:
        try:
            tracker.close(state)
        except Exception as error:
            self._lost(named(error), 0)

    def _lost(self, why: str, lines: int = 1) -> None:
        metrics.TRACKER_LOST.labels(tracker=self._name).inc(lines)
        why = PASSWORD.sub("//", " ".join(why.split()))[:300]
        self._say(f"{self._name} misses lines, the run goes on: {why}", once=f"tracker {self._name}")
