"""Whether two LaTeX answers are the same mathematics, asked of a few processes that run math-verify.

Processes, because sympy can compute for hours and math-verify's own time limit works in a main thread only.
"""

from __future__ import annotations

import logging
from pathlib import Path

from actors.environments.killable import Killable, Lost
from protocols import metrics

PROCESSES = 2
LIMIT_S = 2.0  # of computing, in one check (the median is 1 ms)
PATIENCE_S = 15.0  # for an answer, on a machine with too much to do
QUEUE_S = 60.0

log = logging.getLogger(__name__)


class Equivalence:
    """At most PROCESSES workers, started when they are needed. Safe for many threads."""

    def __init__(self):
        program = Path(__file__).with_name("equivalence_worker.py")
        self._workers = Killable(program, [str(LIMIT_S)], processes=PROCESSES, queue_s=QUEUE_S)
        self._logged = False

    def same(self, reference: str, answer: str) -> bool:
        """Whether `answer` equals `reference`. What cannot be found out within LIMIT_S counts as different.

        Raises DeadlineError where no worker is free for QUEUE_S, and RuntimeError where math-verify does not start.
        """
        try:
            return bool(self._workers.ask("a check of an answer", [reference, answer], PATIENCE_S))
        except Lost:
            self._note(answer)
            return False
        except RuntimeError as error:
            raise RuntimeError(f"math-verify did not start: is it installed? {error}") from None

    def end(self) -> None:
        """Ends the idle workers."""
        self._workers.end()

    def _note(self, answer: str) -> None:
        metrics.ENVIRONMENT_ERRORS.labels(kind="unchecked").inc()
        if not self._logged:
            self._logged = True
            log.warning("math-verify gave up on %r, which counts as wrong; this is logged once, and counted", answer)


equivalence = Equivalence()
"""Says whether two LaTeX answers are the same mathematics."""
