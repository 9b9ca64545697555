"""Processes that tests start: each is known here, so that one that a failed test left does not slow the rest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid

import psutil

from support.waiting import deadline_s

MARK = "REDRAFT_STARTED_BY"
"""A variable of each process that is started here, and so of all that these start, whoever their parent is by then."""
_started: list[subprocess.Popen] = []
_marks: list[str] = []


def start(command: list, **named) -> subprocess.Popen:
    """As `subprocess.Popen`; the process ends with the test, or the fixtures of the file, that started it, and so does
    what it started itself, also where it has ended before: a run outlives the one that supervises it, say."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(command, **named | {"env": {**(named.get("env") or os.environ), MARK: mark}})
    _started.append(process)
    _marks.append(mark)
    return process


def mark() -> int:
    """What `end` takes to end what is started from now on."""
    return len(_started)


def end(since: int) -> None:
    """Ends by pid what was started since the mark and runs still, with all that it started itself."""
    for process in reversed(_started[since:]):
        if process.poll() is None:
            stop(process)
    marks = set(_marks[since:])
    del _started[since:], _marks[since:]
    while marks and (left := _marked(marks)):  # again, since one that is killed may have been starting another
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, deadline_s(10))


def _marked(marks: set[str]) -> list[psutil.Process]:
    """The living processes with one of these marks."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) in marks and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


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
