"""The store: the spool and the table of groups, changed together."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import lmdb

from protocols import metrics, traces
from protocols.log_facts import about
from protocols.replay_stats import CorruptGroup, ReplayStats, metric_of
from replay.config import WINDOW_ROWS, ReplaySettings
from replay.disk.spool import Spool
from replay.server.groups import BROKEN, CORRUPT, EMPTY, FLAT, STALE, TRAINED, Draft, Groups, HeldGroup, State
from replay.server.ready import Ready
from replay.server.samplers import make_sampler

log = logging.getLogger("redraft.replay")
T = TypeVar("T")


class Store:
    """All that the service knows. `changes` rises with each committed change."""

    def __init__(self, folder: Path, run_id: str, settings: ReplaySettings):
        self.run_id, self.settings = run_id, settings
        self.spool = Spool(folder, run_id, settings.map_bytes, settings.durability == "power")
        self.ready = Ready(make_sampler(settings))
        self.groups = Groups(self.ready, self.spool.groups(), self.spool.marks(), self.spool.step())
        self.corrupt = 0  # groups, since this service started
        self._outcomes: Counter[str] = Counter()  # of rows, since this service started
        self._refused: Counter[str] = Counter()  # messages by reason, since this service started
        self.changes = 0
        self.full = False
        for reason in (EMPTY, FLAT, BROKEN, STALE, CORRUPT):
            metric_of("dropped", reason=reason)  # so that it is exported
        self._discard_unreadable()

    def _discard_unreadable(self) -> None:
        """Groups whose states are corrupt have to be played again; one of their rows says in which order."""
        for group in self.groups.unreadable:
            with about(group=group.hex()):
                log.error("the state of group %s fails its checksum; it has to be played again", group.hex())
            self.change(lambda draft, group=group: draft.discard_unreadable(group))

    def change(self, work: Callable[[Draft], T], may_grow: bool = True) -> T:
        """Runs `work` in one transaction; returns its result once that is committed.

        Raises spool.FULL when there is no room, and then has changed nothing.

        `may_grow` is for all that is not new rows: where the map is full, it is what will free room.
        """
        try:
            return self._once(work)
        except lmdb.MapFullError:
            if not may_grow:
                raise
            self.spool.grow()
            return self._once(work)

    def _once(self, work: Callable[[Draft], T]) -> T:
        began = time.monotonic()
        with self.spool.write() as writer:
            draft = Draft(self.groups, writer, self.settings)
            result = work(draft)
            draft.flush()
        draft.adopt()
        if not draft.empty:  # or nothing was written, which proves nothing
            self.note_room()
        self.changes += 1
        self._count(draft, time.monotonic() - began)
        return result

    def _count(self, draft: Draft, seconds: float) -> None:
        metrics.REPLAY_COMMIT_SECONDS.observe(seconds)
        self.corrupt += draft.corrupt
        for group, lease in draft.ended:
            traces.record("close", traces.closed(group), seconds, traces.played(group, lease), lease=lease)
        dropped = draft.filtered + Counter({EMPTY: draft.marked[EMPTY], CORRUPT: draft.corrupt})
        for reason, groups in dropped.items():
            metric_of("dropped", reason=reason).inc(groups)

    def count_rows(self, outcomes: Counter[str]) -> None:
        """Counts rows by what became of them: stored, duplicate or fenced."""
        self._outcomes += outcomes
        for outcome, rows in outcomes.items():
            metric_of(outcome).inc(rows)

    def note_full(self, error: Exception) -> None:
        if not self.full:
            log.error("the replay spool has no room (%s); rows are held back until there is", error)
        self.full = True

    def note_room(self) -> None:
        if self.full:
            log.warning("the replay spool has room again")
        self.full = False

    def refuse(self, reason: str, detail: str) -> None:
        if not self._refused[reason]:
            log.warning("refused a message (%s): %s; further ones are only counted", reason, detail)
        self._refused[reason] += 1
        metric_of("refused", reason=reason).inc()

    @property
    def room(self) -> int:
        """Rows that a producer may have unacknowledged: 0 holds new groups back, rows of open ones still trickle in."""
        return 0 if self.full or self.groups.bytes >= self.settings.max_bytes else WINDOW_ROWS

    def stats(self) -> ReplayStats:
        """Counts of groups by state, of what is held, and of what came since this service started."""
        groups = self.groups
        return ReplayStats(
            open=groups.count(State.OPEN),
            ready=groups.count(State.READY),
            claimed=groups.count(State.CLAIMED),
            used=groups.count(State.USED),
            step=groups.step,
            trained_total=groups.count(State.USED) + groups.marks[TRAINED],
            dropped=dropped(groups.of(State.FILTERED), groups.marks, self.corrupt),
            corrupt=corrupt_of(groups.of(State.ABANDONED)),
            rows=groups.rows,
            bytes=groups.bytes,
            max_bytes=self.settings.max_bytes,
            fullest=groups.bytes / self.settings.max_bytes,
            full=self.full,
            stored=self._outcomes["stored"],
            duplicate=self._outcomes["duplicate"],
            fenced=self._outcomes["fenced"],
            refused=self._refused.total(),
        )

    def export(self) -> None:
        """Sets this service's gauges, and sweeps the spool; called every second or so."""
        self.spool.sweep()
        self.stats().export()

    def close(self) -> None:
        self.spool.close()


def dropped(filtered: Iterable[tuple[bytes, HeldGroup]], marks: Counter[str], corrupt: int) -> dict[str, int]:
    """How many groups nothing will train on, by reason: those that are filtered, or were, and the corrupt ones."""
    reasons = marks + Counter(held.reason for _, held in filtered) + Counter({CORRUPT: corrupt})
    return {reason: groups for reason, groups in reasons.items() if reason != TRAINED}


def corrupt_of(abandoned: Iterable[tuple[bytes, HeldGroup]]) -> tuple[CorruptGroup, ...]:
    """Those of the abandoned groups that have to be played again because they were corrupt."""
    corrupt = [(group, held) for group, held in abandoned if held.reason == CORRUPT]
    return tuple(CorruptGroup(group.hex(), held.lease, held.order) for group, held in corrupt)
