"""Asks the controller of a run again and again, from a process of its own.

A process that is connected to a Ray cluster which dies may hang for a minute, write on the terminal, or be aborted by
Ray. None of it may happen to a view that stays open, so that process is a child, and is replaced when it does not
answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from typing import IO, Any

from protocols import strict_json
from protocols.errors import DeadlineError, RedraftError, in_a_line
from protocols.reports import RunEnded, RunStatus, status_from_json, status_to_json

LIMIT_S = 60.0  # of one answer; the first one starts Python and Ray


class Remote:
    """A child process that asks. Safe to use from any thread: questions wait for each other, `close` does not."""

    def __init__(self, run: str, limit_s: float = LIMIT_S):
        self._run, self._limit_s = run, limit_s
        self._asking = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._closed = False

    def status(self) -> RunStatus | RunEnded:
        """See client.status. Raises RedraftError when the run cannot be reached, DeadlineError after the limit."""
        return status_from_json(self._ask("status"))

    def stop(self) -> None:
        """See client.stop. Raises as `status` does."""
        self._ask("stop")

    def close(self) -> None:
        """Ends the child; a question that waits raises."""
        self._closed = True
        self._end()

    def _ask(self, question: str) -> Any:
        with self._asking:
            questions, answers = self._living()
            try:
                questions.write(question + "\n")
                questions.flush()
                if not select.select([answers], [], [], self._limit_s)[0]:
                    self._end()
                    raise DeadlineError("redraft", f"the controller of {self._run}", self._limit_s)
                answer = json.loads(answers.readline())
            except (OSError, ValueError):  # it is gone
                self._end()
                raise RedraftError(f"the controller of {self._run} cannot be asked") from None
        if "error" in answer:
            raise RedraftError(answer["error"])
        return answer["answer"]

    def _living(self) -> tuple[IO[str], IO[str]]:
        """The pipes to and from a child that lives."""
        if self._closed:
            raise RedraftError("closed")
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "redraft.control.remote", self._run],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the view
            )
        assert self._child.stdin is not None and self._child.stdout is not None  # both are pipes
        return self._child.stdin, self._child.stdout

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


def answer(run: str) -> None:
    """The child: answers each line of stdin with a line of JSON, until stdin ends."""
    from redraft.control import client

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else writes there
    for line in sys.stdin:
        try:
            status = client.stop(run) if line.strip() == "stop" else client.status(run)
            found = {"answer": None if status is None else status_to_json(status)}
            goes_on = not isinstance(status, RunEnded)
        except Exception as error:  # also what Ray raises when a cluster dies
            found, goes_on = {"error": in_a_line(error)}, False
        if not goes_on:
            _disconnect()
        answers.write(strict_json.dumps(found) + "\n")
        answers.flush()


def _disconnect() -> None:
    """The next answer may come from another cluster."""
    import ray  # only after redraft.control.client, which sets a variable that Ray reads when it is imported

    with contextlib.suppress(Exception):
        ray.shutdown()


if __name__ == "__main__":
    answer(sys.argv[1])
