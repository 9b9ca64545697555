"""How long an actor without news may wait with its report, from what exchanges are seen to cost."""

from __future__ import annotations

from time import thread_time
from types import TracebackType

SHARE = 0.1  # of the loop's time, which exchanges without news may take: they keep figures fresh, and show who lives
KEPT = 0.995  # of what was seen, from one round to the next: it counts for some ten seconds


class Pace:
    """Measures in each round what exchanges took of the loop's thread: `with pace:` around that work, `pace.ended(n)`
    when the reports of n exchanges are in. A report waits at most `longest_s`, and not at all for less than a round of
    `round_s`."""

    def __init__(self, round_s: float, longest_s: float):
        self._round_s, self._longest_s = round_s, longest_s
        self._spent_s = self._exchanges = self._began = 0.0

    def __enter__(self) -> None:
        self._began = thread_time()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._spent_s += thread_time() - self._began

    def ended(self, exchanges: int) -> None:
        """The reports of so many exchanges are in."""
        self._spent_s, self._exchanges = self._spent_s * KEPT, (self._exchanges + exchanges) * KEPT

    @property
    def exchange_s(self) -> float:
        """CPU time of one exchange in this thread, with its share of what the rounds took; 0 before any was seen."""
        return self._spent_s / self._exchanges if self._exchanges else 0.0

    def wait_s(self, actors: int) -> float:
        """How long a report of one of so many may wait for something to say, so that exchanges without news take no
        more than SHARE of the thread."""
        between_s = actors * self.exchange_s / SHARE
        return min(self._longest_s, between_s) if between_s > self._round_s else 0.0
