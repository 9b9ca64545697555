"""How many actors a run should have: what the learner waits for decides, and whether actors would have work.

    the learner waits for groups more than its target, and all actors have work meanwhile   -> as many as it needs
    it hardly waits, and actors stand idle for want of leases, one at least, for a while     -> one fewer

With n actors that are busy for u seconds of a step, v of them while the learner works, n' would be busy for u n / n',
and the learner would wait for what v does not cover. Where they play ahead all the time, v is the learner's work T - W,
and n T / (T - W) actors would leave it no wait at all; the target leaves it some. Twice as many at most are asked for,
since the next steps say better what is needed, and no other while one still starts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.config import AutoscaleSettings
from protocols.reports import StepReport

RECENT = 8  # steps that are averaged
ENOUGH = 4  # of them, before more actors are asked for
CLEAR = 2  # of them, where each of them alone asks for twice as many or more
MOST = 2  # times as many as there are, at once
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
        self._looks: list[tuple[float, int, bool]] = []
        self._began: float | None = None  # of the step under way
        self._settled = 0  # whole steps in a row with the fleet as it should be
        self._quiet_since: float | None = None
        self._quiet_s, self._last_change = QUIET_S, 0

    def look(self, now: float, idle: int, settled: bool) -> None:
        """`idle` actors have no lease since none may be given; the fleet is as it should be or not."""
        self._looks.append((now, idle, settled))

    def step(self, now: float, report: StepReport) -> int:
        """The learner's report of a step that has just ended; returns how many actors there should be."""
        began = now - _whole_s(report.seconds) if self._began is None else self._began
        looks = [look for look in self._looks if look[0] >= began]
        self._began, self._looks = now, []
        if not looks or report.wait_reason == "straggler":  # that no other actor can end
            return self.count
        settled = all(settled for _, _, settled in looks)
        if settled and not self._settled:
            self._recent.clear()  # they were played by another number of actors
        self._settled = self._settled + 1 if settled else 0
        self._recent.append(_step(began, looks, report.seconds))
        if (more := self._needed()) > self.count:
            self._change(more - self.count)
        elif self._can_spare(now, settled):
            self._change(-1)
        return self.count

    @property
    def wait(self) -> float:
        """Share of the recent steps in which the learner waited for groups."""
        return sum(step.waited_s for step in self._recent) / max(sum(step.seconds for step in self._recent), 1e-9)

    def _needed(self) -> int:
        """As many actors as would leave the learner its target, by the recent steps; as many as there are where these
        do not show that there are too few."""
        held = _mean(step.idle_while_waiting for step in self._recent)
        if self.wait <= self._settings.target_learner_wait or held >= HELD:
            return self.count
        most = min(MOST * self.count, self._settings.max)
        if self._settled >= ENOUGH:
            return min(math.ceil(self._need(self._recent)), most)
        clear = self._settled >= CLEAR and all(self._need([step]) >= MOST * self.count for step in self._recent)
        return most if clear else self.count

    def _need(self, steps: Sequence[Step]) -> float:
        """Actors, by these steps."""
        target = self._settings.target_learner_wait
        whole_s, waited_s = (sum(getattr(step, name) for step in steps) for name in ("seconds", "waited_s"))
        busy_s = sum(step.seconds * (self.count - step.idle) for step in steps)  # of all actors
        waited_for_s = sum(step.waited_s * (self.count - step.idle_while_waiting) for step in steps)
        beside_s = (busy_s - waited_for_s) / self.count
        allowed_s = (whole_s - waited_s) * target / (1 - target)
        return busy_s / max(allowed_s + beside_s, 1e-9) - 1e-6  # what is whole but for rounding is whole

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
        if self._last_change < 0 < by:
            self._quiet_s *= 2
        self._last_change = by
        self.count += by
        self._recent.clear()
        self._settled, self._quiet_since = 0, None


def _step(began: float, looks: Sequence[tuple[float, int, bool]], seconds: Mapping[str, float]) -> Step:
    """The learner waits first and works then."""
    waited_s = seconds["wait"]
    while_waiting = [idle for at, idle, _ in looks if at - began <= waited_s]
    return Step(_whole_s(seconds), waited_s, _mean(idle for _, idle, _ in looks), _mean(while_waiting))


def _whole_s(seconds: Mapping[str, float]) -> float:
    """Of a step; batches are packed beside the rest."""
    return sum(spent for phase, spent in seconds.items() if phase != "pack")


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0
