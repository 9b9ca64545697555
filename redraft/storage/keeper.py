"""Makes copies of a run beside it: one as soon as it begins, one after each checkpoint, again where one has failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from redraft import run as runs
from redraft.run import Run
from redraft.storage.copies import Copies, Manifest, TakenOverError
from redraft.storage.store import said

log = logging.getLogger("redraft.storage")
LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
"""From a copy that has failed to the next try: it doubles."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """The copies so far: when the last one was made (Unix time), of which step, and how many have failed, the last one
    why; `error` is "" again when one was made."""

    at: float = 0.0
    step: int = 0
    failures: int = 0
    error: str = ""


class Keeper:
    """Copies in a thread of its own until `close`. `copies` is made there: it imports what reaches the store."""

    def __init__(self, run: Run, copies: Callable[[], Copies]):
        self._run, self._make = run, copies
        self.report = CopyReport()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="copies", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No copy is begun any more; one that is under way is of no use when the process ends."""
        self._closing.set()

    def _keep(self) -> None:
        copies, pause_s, copied = None, FIRST_PAUSE_S, -1
        while not self._closing.wait(LOOK_S):
            if (runs.newest_step(self._run.folder) or 0) <= copied:
                continue
            try:
                copies = copies or self._make()
                began = time.monotonic()
                manifest = copies.copy()
            except TakenOverError as error:
                self._failed(error)
                return
            except Exception as error:  # whatever keeps a copy from being made must not end the run
                self._failed(error)
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                pause_s, copied = FIRST_PAUSE_S, manifest.step or 0
                self._made(manifest, time.monotonic() - began)

    def _made(self, manifest: Manifest, seconds: float) -> None:
        self.report = replace(self.report, at=manifest.at, step=manifest.step or 0, error="")
        log.info("copy %d: step %d, in %.1f s", manifest.number, self.report.step, seconds)

    def _failed(self, error: Exception) -> None:
        self.report = replace(self.report, failures=self.report.failures + 1, error=said(error))
        log.warning("no copy, for the %d. time: %s", self.report.failures, self.report.error)
