"""The store: the spool and the table of groups, changed together."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lmdb

from protocols import metrics
from replay.config import WINDOW_ROWS, ReplaySettings
from replay.disk.spool import Spool
from replay.server.groups import EMPTY, FLAT, STALE, TORN, TRAINED, Draft, Groups, State
from replay.server.ready import Ready
from replay.server.samplers import make_sampler

log = logging.getLogger("redraft.replay")
T = TypeVar("T")
COUNTED = (State.OPEN, State.READY, State.CLAIMED, State.USED)


class Store:
    """All that the service knows. `changes` rises with each committed change."""

    def __init__(self, folder: Path, run_id: str, settings: ReplaySettings):
        self.run_id, self.settings = run_id, settings
        self.spool = Spool(folder, run_id, settings.map_bytes, settings.durability == "power")
        self.ready = Ready(make_sampler(settings))
        self.groups = Groups(self.ready, self.spool.records(), self.spool.marks(), self.spool.step())
        self.torn = 0  # groups, since this service started
        self.outcomes: Counter[str] = Counter()  # of rows, since this service started
        self.refused: Counter[str] = Counter()  # messages by reason, since this service started
        self.changes = 0
        self.full = False
        for reason in (EMPTY, FLAT, STALE, TORN):
            metrics.REPLAY_DROPPED.labels(reason=reason)  # so that it is exported
        self._drop_damaged()

    def _drop_damaged(self) -> None:
        """Groups whose records cannot be read have to be played again; a row of theirs says where they belong."""
        for group in self.groups.damaged:
            log.error("the record of group %s fails its checksum; it has to be played again", group.hex())
            self.change(lambda draft, group=group: draft.tear_unread(group))

    def change(self, work: Callable[[Draft], T], may_grow: bool = True) -> T:
        """Runs `work` in one transaction; what it returned once that is committed. Raises spool.FULL, changing nothing.

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
        self.torn += draft.torn
        dropped = draft.aside + Counter({EMPTY: draft.marked[EMPTY], TORN: draft.torn})
        for reason, groups in dropped.items():
            metrics.REPLAY_DROPPED.labels(reason=reason).inc(groups)

    def note_full(self, error: Exception) -> None:
        if not self.full:
            log.error("the replay spool has no room (%s); rows are held back until there is", error)
        self.full = True

    def note_room(self) -> None:
        if self.full:
            log.warning("the replay spool has room again")
        self.full = False

    def refuse(self, reason: str, detail: str) -> None:
        if not self.refused[reason]:
            log.warning("refused a message (%s): %s; further ones are only counted", reason, detail)
        self.refused[reason] += 1
        metrics.REPLAY_REFUSED.labels(reason=reason).inc()

    @property
    def room(self) -> int:
        """Rows that a producer may have unacknowledged: 0 holds new groups back, rows of open ones still trickle in."""
        return 0 if self.full or self.groups.bytes >= self.settings.max_bytes else WINDOW_ROWS

    def stats(self) -> dict:
        """Counts of groups by state and of what is held.

        `step` is the last one that used groups, in the history that stands; `trained_total` counts groups whose uses
        are spent, kept or forgotten; `dropped` those set aside, by reason (torn ones since this service started only);
        `fullest` is the share of `max_bytes` that is held, over shards the largest; `torn` are [group in hex, lease,
        order] of those that have to be played again; rows are counted since it started.
        """
        groups = self.groups
        dropped = (
            groups.marks + Counter(record.reason for _, record in groups.of(State.ASIDE)) + Counter(torn=self.torn)
        )
        return {
            **{state.name.lower(): groups.count(state) for state in COUNTED},
            "step": groups.step,
            "trained_total": groups.count(State.USED) + groups.marks[TRAINED],
            "dropped": {reason: n for reason, n in dropped.items() if reason != TRAINED},
            "torn": [[g.hex(), r.lease, r.order] for g, r in groups.of(State.ABANDONED) if r.reason == TORN],
            "rows": groups.rows,
            "bytes": groups.bytes,
            "max_bytes": self.settings.max_bytes,
            "fullest": groups.bytes / self.settings.max_bytes,
            "full": self.full,
            "stored": self.outcomes["stored"],
            "duplicates": self.outcomes["duplicate"],
            "fenced": self.outcomes["fenced"],
            "refused": self.refused.total(),
        }

    def export(self) -> None:
        """Sets this service's gauges, and does what is due now and then."""
        self.spool.sweep()
        for state in COUNTED:
            metrics.REPLAY_GROUPS.labels(state=state.name.lower()).set(self.groups.count(state))
        metrics.REPLAY_BYTES.set(self.groups.bytes)
        metrics.REPLAY_MAX_BYTES.set(self.settings.max_bytes)

    def close(self) -> None:
        self.spool.close()
