"""Whether two LaTeX answers are the same mathematics, asked of a few processes that run math-verify.

Processes, because sympy can compute for hours and math-verify's own time limit works in a main thread only. Fresh
programs rather than forks, because an actor holds the threads of its engine.
"""

from __future__ import annotations

import atexit
import json
import logging
import queue
import select
import subprocess
import sys
from pathlib import Path

from protocols import metrics
from protocols.errors import DeadlineError

PROCESSES = 2
LIMIT_S = 2.0  # of computing, in one check (the median is 1 ms)
PATIENCE_S = 15.0  # for an answer, on a machine with too much to do
START_S = 60.0
QUEUE_S = 60.0

log = logging.getLogger(__name__)


class _Worker:
    def __init__(self):
        program = [sys.executable, "-P", str(Path(__file__).with_name("equivalence_worker.py")), str(LIMIT_S)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        self._said, self._answers = self._process.stdin, self._process.stdout
        self._heard = select.poll()
        self._heard.register(self._answers, select.POLLIN)
        if self._hear(START_S) != "ready":
            self.end()
            raise RuntimeError("math-verify did not start: is it installed?")

    def _hear(self, seconds: float) -> str:
        """The next line; empty where none comes in time, or none will come any more."""
        return self._answers.readline().decode().strip() if self._heard.poll(seconds * 1000) else ""

    def lives(self) -> bool:
        return self._process.poll() is None

    def same(self, reference: str, answer: str) -> bool | None:
        """None: it died of the question, or does not answer."""
        try:
            self._said.write(json.dumps([reference, answer]).encode() + b"\n")
        except BrokenPipeError:
            return None
        return {"true": True, "false": False}.get(self._hear(PATIENCE_S))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()
        self._answers.close()


class Equivalence:
    """At most PROCESSES workers, started when they are needed. Safe for many threads."""

    def __init__(self):
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(PROCESSES):
            self._idle.put(None)  # a worker that is yet to start
        self._logged = False
        atexit.register(self.end)

    def same(self, reference: str, answer: str) -> bool:
        """Whether `answer` equals `reference`. What cannot be found out within LIMIT_S counts as different.

        Raises DeadlineError where no worker is free for QUEUE_S, and RuntimeError where math-verify does not start.
        """
        try:
            worker = self._idle.get(timeout=QUEUE_S)
        except queue.Empty:
            raise DeadlineError("a check of an answer", "a free math-verify process", QUEUE_S) from None
        try:
            if worker is not None and not worker.lives():
                worker.end()
                worker = None
            worker = worker or _Worker()
            same = worker.same(reference, answer)
            if same is None:
                worker.end()
                worker = None
                self._note(answer)
            return bool(same)
        finally:
            self._idle.put(worker)

    def _note(self, answer: str) -> None:
        metrics.ENVIRONMENT_ERRORS.labels(kind="unchecked").inc()
        if not self._logged:
            self._logged = True
            log.warning("math-verify gave up on %r, which counts as wrong; this is logged once, and counted", answer)

    def end(self) -> None:
        """Ends the idle workers; a busy one ends when this process closes its input by ending."""
        for _ in range(PROCESSES):
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return
            if worker is not None:
                worker.end()


equivalence = Equivalence()
