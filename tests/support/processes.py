"""Processes that tests start: each is known here, so that one that a failed test left does not slow the rest."""

from __future__ import annotations

import contextlib
import subprocess

import psutil

from support.waiting import deadline_s

_started: list[subprocess.Popen] = []


def start(command: list, **named) -> subprocess.Popen:
    """As `subprocess.Popen`; the process ends with the test, or the fixtures of the file, that started it."""
    process = subprocess.Popen(command, **named)
    _started.append(process)
    return process


def mark() -> int:
    """What `end` takes to end what is started from now on."""
    return len(_started)


def end(since: int) -> None:
    """Ends by pid what was started since the mark and runs still, with all that it started itself."""
    for process in reversed(_started[since:]):
        if process.poll() is None:
            stop(process)
    del _started[since:]


def stop(process: subprocess.Popen) -> None:
    """Asks it to end, so that it can clear away what it holds; then kills it and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(deadline_s(10))
        process.kill()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()
