"""Processes that answer one question at a time and can be killed: for code that may compute for ever, or die.

Fresh programs rather than forks, because an actor holds the threads of its engine. A program is run by its path; it
says `ready`, and then a line of JSON to each line of JSON it hears. Its input closes when its parent ends.
"""

from __future__ import annotations

import atexit
import json
import queue
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocols.errors import DeadlineError

START_S = 60.0
READY = "ready"


class Lost(Exception):
    """A process died of its question, or gave no answer in time. `hung` says which."""

    def __init__(self, hung: bool):
        self.hung = hung
        super().__init__("gave no answer in time" if hung else "died")


class _Process:
    """Raises RuntimeError with what it said instead where it does not become ready."""

    def __init__(self, program: Path, arguments: Sequence[str], first: Any):
        command = [sys.executable, "-P", str(program), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        self._said, self._heard, self._rest = self._process.stdin, self._process.stdout, b""
        self._poll = select.poll()
        self._poll.register(self._heard, select.POLLIN)
        try:
            if first is not None:
                self._say(first)
            answer = self._hear(START_S)
        except Lost as lost:
            answer = f"it {lost}"
        if answer != READY:
            self.end()
            raise RuntimeError(answer)

    def ask(self, question: Any, limit_s: float) -> Any:
        """Raises Lost."""
        self._say(question)
        return self._hear(limit_s)

    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()
        self._heard.close()

    def _say(self, question: Any) -> None:
        left = memoryview(json.dumps(question).encode() + b"\n")
        try:
            while left:
                left = left[self._said.write(left) :]
        except BrokenPipeError:
            raise Lost(hung=False) from None

    def _hear(self, limit_s: float) -> Any:
        until, parts = time.monotonic() + limit_s, [self._rest]
        while b"\n" not in parts[-1]:
            if not self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise Lost(hung=True)
            if not (part := self._heard.read(1 << 16)):
                raise Lost(hung=False)
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise Lost(hung=False) from None


class Killable:
    """At most `processes` of them, started when they are needed; one that is lost is replaced. Safe for many threads.

    `first` is said to each before it has to be ready. `queue_s` is the longest wait for one that is free.
    """

    def __init__(
        self, program: Path, arguments: Sequence[str] = (), *, processes: int, queue_s: float, first: Any = None
    ):
        self._how, self._processes, self._queue_s = (program, arguments, first), processes, queue_s
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        self._ended = False
        for _ in range(processes):
            self._idle.put(None)  # a process that is yet to start
        atexit.register(self.end)

    def start(self) -> None:
        """Has one process be ready. Raises RuntimeError where none will ever be, DeadlineError as `ask` does."""
        process = self._free("a start")
        try:
            process = self._living(process)
        finally:
            self._give_back(process)

    def ask(self, what: str, question: Any, limit_s: float) -> Any:
        """The answer to a question, which is about `what`.

        Raises Lost where that process dies or gives no answer within `limit_s`, and has been killed; DeadlineError
        where none is free in time, and RuntimeError where none starts.
        """
        process = self._free(what)
        try:
            process = self._living(process)
            try:
                return process.ask(question, limit_s)
            except BaseException:
                process.end()
                process = None
                raise
        finally:
            self._give_back(process)

    def end(self) -> None:
        """Ends the idle ones; a busy one ends once it has answered, or when this process closes its input by ending."""
        atexit.unregister(self.end)
        self._ended = True
        self._end_idle()

    def _give_back(self, process: _Process | None) -> None:
        self._idle.put(process)
        if self._ended:
            self._end_idle()

    def _end_idle(self) -> None:
        for _ in range(self._processes):
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                return
            if process is not None:
                process.end()

    def _free(self, what: str) -> _Process | None:
        try:
            return self._idle.get(timeout=self._queue_s)
        except queue.Empty:
            raise DeadlineError(what, f"a free process of {self._how[0].name}", self._queue_s) from None

    def _living(self, process: _Process | None) -> _Process:
        if process is not None and process.lives():
            return process
        if process is not None:
            process.end()
        return _Process(*self._how)
