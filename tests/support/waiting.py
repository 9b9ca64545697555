"""Waits of tests: each ends as soon as its fact is there, and its deadline follows how busy the machine is."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

MOST = 30.0  # a machine that is busier than this is taken to be this busy: a hang must end


def slowness() -> float:
    """How many times longer than on a quiet machine things take now: who wants to run, to each core; 1 or more."""
    average, _, _, running, _ = Path("/proc/loadavg").read_text().split()
    waiting = max(float(average), int(running.split("/")[0]))  # the average of a minute is late, the moment is noisy
    return min(max(waiting / len(os.sched_getaffinity(0)), 1.0), MOST)


def deadline_s(normal_s: float) -> float:
    """How long to wait for what takes less than `normal_s` seconds on a quiet machine."""
    return normal_s * slowness()


def until(condition, what: str, normal_s: float = 20.0):
    """Waits until the condition holds and returns what it returned; fails by saying what did not happen.

    `what` is words or a function that returns them when the time is over; `normal_s` as for `deadline_s`, which is
    asked again at each look, since a machine may become busy meanwhile.
    """
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        if waited > deadline_s(normal_s):
            raise AssertionError(f"not within {waited:.0f} s: {what() if callable(what) else what}")
        pause()
    return found


def pause(seconds: float = 0.02) -> None:
    """Gives the processor away between two looks at a condition that has a deadline."""
    select.select([], [], [], seconds)
