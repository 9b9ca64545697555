"""How many actors a run should have: what the learner waits for decides, and whether actors would have work.

    the learner waits for groups more than its target, and all actors have work meanwhile   -> one more
    it hardly waits, and actors stand idle for want of leases, one at least, for a while     -> one fewer

After a change nothing is counted until the fleet is as it should be, so no actor is asked for while one still starts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actors.config import AutoscaleSettings
from protocols.reports import StepReport

RECENT = 8  # steps that are averaged
ENOUGH = 4  # of them, before one more actor is asked for
HELD = 0.5  # actors idle while the learner waits: above, admission holds them back, and one more would be idle too
SPARE = 0.1  # share of actors that may be idle beyond the one that can be spared: so the others are not too few
LITTLE = 0.4  # of the target: an actor is spared only while the learner waits less
QUIET_S = 300.0  # that all this must last before; twice as long after each time that the actor was missed


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one learner step, those in which it waited for groups, and how many actors were idle."""

    seconds: float
    waited_s: float
    idle: float
    idle_while_waiting: float


class Autoscaler:
    """Fed with looks at the fleet and the learner's reports; times are of one clock, in seconds."""

    def __init__(self, settings: AutoscaleSettings, count: int):
        self._settings, self.count = settings, count
        self._recent: deque[Step] = deque(maxlen=RECENT)
        self._looks: list[tuple[float, int]] = []
        self._began: float | None = None  # of the step under way
        self._settled = 0  # whole steps in a row with the fleet as it should be
        self._settled_so_far = False
        self._quiet_since: float | None = None
        self._quiet_s, self._last_change = QUIET_S, 0

    def look(self, now: float, idle: int, settled: bool) -> None:
        """`idle` actors have no lease since none may be given; the fleet is as it should be or not."""
        self._looks.append((now, idle))
        self._settled_so_far &= settled

    def step(self, now: float, report: StepReport) -> int:
        """The learner's report of a step that has just ended; returns how many actors there should be."""
        began, looks, settled = self._began, self._looks, self._settled_so_far
        self._began, self._looks, self._settled_so_far = now, [], True
        if began is None or not looks or report.wait_reason == "straggler":  # that no other actor can end
            return self.count
        if settled and not self._settled:
            self._recent.clear()  # they were played by another number of actors
        self._settled = self._settled + 1 if settled else 0
        self._recent.append(_step(began, looks, report.seconds))
        if self._wants_more():
            self._change(1)
        elif self._can_spare(now, settled):
            self._change(-1)
        return self.count

    @property
    def wait(self) -> float:
        """Share of the recent steps in which the learner waited for groups."""
        return sum(step.waited_s for step in self._recent) / max(sum(step.seconds for step in self._recent), 1e-9)

    def _wants_more(self) -> bool:
        held = _mean(step.idle_while_waiting for step in self._recent)
        return (
            self._settled >= ENOUGH
            and self.wait > self._settings.target_learner_wait
            and held < HELD
            and self.count < self._settings.max
        )

    def _can_spare(self, now: float, settled: bool) -> bool:
        """An actor that is still waited for can be spared, too, when the learner does not wait any more."""
        idle = _mean(step.idle for step in self._recent)
        content = self.wait < LITTLE * self._settings.target_learner_wait and len(self._recent) == RECENT
        spare = idle > 1 + SPARE * self.count or not settled
        if not content or not spare or self.count == self._settings.min:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now
        return now - self._quiet_since > self._quiet_s

    def _change(self, by: int) -> None:
        if (self._last_change, by) == (-1, 1):
            self._quiet_s *= 2
        self._last_change = by
        self.count += by
        self._recent.clear()
        self._settled, self._settled_so_far, self._quiet_since = 0, False, None


def _step(began: float, looks: list[tuple[float, int]], seconds: Mapping[str, float]) -> Step:
    """The learner waits first and works then; batches are packed beside both."""
    waited_s = seconds["wait"]
    while_waiting = [idle for at, idle in looks if at - began <= waited_s]
    whole = sum(spent for phase, spent in seconds.items() if phase != "pack")
    return Step(whole, waited_s, _mean(idle for _, idle in looks), _mean(while_waiting))


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0
