"""The states of groups: a table in memory, and drafts of changes that the table adopts once the spool has them.

    open ---whole---> ready ---claim---> claimed ---commit---> used ---checkpoint---> forgotten
     |  ^              |  ^                 |                                             ^
     |  | newer lease  |  +-----release, resume, uses left                                |
     v  |              +--flat, broken, stale--> filtered ----checkpoint------------------+
    abandoned <--corrupt-- any

Of a forgotten group only a mark (its id and the reason) stays. Here `group` is the id of one, and a HeldGroup what is
known of it; its turns are rows, which are only counted here.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgpack

from protocols.errors import RedraftError
from protocols.weights import staleness, step_of
from protocols.wire import CLOSE, NO_VERSION, Packed, Row
from replay.config import LOST_CLAIM, ReplaySettings
from replay.disk.spool import CorruptError, Writer

TRAINED = "trained"  # the mark of a group that was used; others say why nothing trains on it
CORRUPT = "corrupt"
FLAT, BROKEN, STALE, EMPTY = "flat", "broken", "stale", "empty"
CRC = struct.Struct(">I")
NO_PRIORITY = -1.0  # of a group that the learner has not used


class State(IntEnum):
    OPEN = 0
    READY = 1
    CLAIMED = 2
    USED = 3
    ABANDONED = 4  # no rows: only rows under a higher fencing token open it again
    FILTERED = 5  # ended like a used one, kept as long: `reason` says why nothing will train on it


PLAYED = (State.OPEN, State.ABANDONED)  # rows may still come


class HeldGroup(NamedTuple):
    """What is known of one group.

    `lease` is the fencing token of its play, `order` the place of its lease among all. `turns` is what the close row
    promises (-1 before it came), `rows` counts what is stored with the close row, `highest` is the largest turn number,
    `size` the bytes of its records. `low` and `high` are the versions of the smallest and largest step that sampled in
    it. `uses` are the steps that used it. `holder` and `request` name its claim.
    `priority` is what the learner last gave it, `chance` how likely it was to be claimed, relative to an even choice.
    `reason` says why it is filtered (at `step`), or that it was corrupt and has to close again.
    `leased` is the version of its actor when it was leased: none of its tokens is older. NO_VERSION where no lease was
    told, but a row came.
    """

    lease: int
    order: int
    state: State = State.OPEN
    turns: int = -1
    rows: int = 0
    highest: int = -1
    size: int = 0
    low: int = NO_VERSION
    high: int = NO_VERSION
    spread: float = 0.0
    uses: tuple[int, ...] = ()
    holder: bytes = b""
    request: int = 0
    priority: float = NO_PRIORITY
    chance: float = 1.0
    reason: str = ""
    step: int = 0
    leased: int = NO_VERSION

    @property
    def whole(self) -> bool:
        """Whether all rows are here. Turn numbers are distinct, so their count and the largest say it."""
        return self.turns >= 0 and self.rows == self.turns + 1 and self.highest == self.turns - 1

    def staleness(self, step: int) -> int:
        """How many steps before `step` its oldest token was sampled; 0 where nothing was."""
        return staleness_of(self.low, self.high, step)

    def expected_staleness(self, step: int) -> int:
        """The same of an open group, as far as is known: before its first token has come, that of its lease."""
        return self.staleness(step) if self.low != NO_VERSION else staleness_of(self.leased, self.leased, step)

    def with_row(self, turn: int, version: int, turns: int, spread: float, size: int) -> HeldGroup:
        """This open group with one more row. Written out: `_replace` would double the cost of a row."""
        low, high = self.low, self.high
        if version != low and version != high and version != NO_VERSION:
            versions = [v for v in (low, high, version) if v != NO_VERSION]
            low, high = min(versions, key=step_of), max(versions, key=step_of)
        if turn == CLOSE:
            highest = self.highest
        else:
            turns, spread = self.turns, self.spread
            highest = turn if turn > self.highest else self.highest
        rows, size = self.rows + 1, self.size + size
        facts = (State.OPEN, turns, rows, highest, size, low, high, spread)
        return HeldGroup(self.lease, self.order, *facts, reason=self.reason, leased=self.leased)

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(self)  # pyright: ignore[reportAssignmentType]  None is for a Packer that keeps all
        return CRC.pack(zlib.crc32(packed)) + packed

    @classmethod
    def unpack(cls, stored: bytes) -> HeldGroup:
        """Raises CorruptError when it is not as it was written."""
        if len(stored) < CRC.size or zlib.crc32(stored[CRC.size :]) != CRC.unpack_from(stored)[0]:
            raise CorruptError("the state of a group fails its checksum")
        lease, order, state, *rest = msgpack.unpackb(stored[CRC.size :], use_list=False)
        return cls(lease, order, State(state), *rest)


def staleness_of(low: int, high: int, step: int) -> int:
    """The larger of the two distances, in steps; 0 where nothing was sampled."""
    return max((staleness(step, version) for version in (low, high) if version != NO_VERSION), default=0)


class ReadyListener(Protocol):
    """Is told of each group that becomes ready, and of each that stops being so."""

    def add(self, group: bytes, held: HeldGroup) -> None: ...

    def remove(self, group: bytes, held: HeldGroup) -> None: ...


class Groups:
    """Every held group, by id and by state; counts are derived from them, never kept beside them.

    It starts with what the spool has: ids and packed states, marks by reason, and the last step. `unreadable` are the
    ids whose states are corrupt.
    """

    def __init__(
        self,
        ready: ReadyListener,
        stored: Iterable[tuple[bytes, bytes]] = (),
        marks: Counter | None = None,
        step: int = 0,
    ):
        self.step = step  # the last one that used groups
        self._ready = ready
        self._held: dict[bytes, HeldGroup] = {}
        self._ids: dict[State, dict[bytes, None]] = {state: {} for state in State}
        self.rows = self.bytes = 0
        self.marks = marks or Counter()
        self.unreadable: list[bytes] = []
        found: list[tuple[bytes, HeldGroup]] = []
        for group, packed in stored:
            try:
                found.append((group, HeldGroup.unpack(packed)))
            except CorruptError:
                self.unreadable.append(group)
        self.step = max([step, *(use for _, held in found for use in held.uses)])
        for group, held in sorted(found, key=lambda each: -each[1].priority):  # a new group gets the largest
            self.put(group, held)

    def get(self, group: bytes) -> HeldGroup | None:
        return self._held.get(group)

    def held(self, group: bytes) -> HeldGroup:
        """One that is known to be held."""
        return self._held[group]

    def put(self, group: bytes, held: HeldGroup | None) -> None:
        old = self._held.pop(group, None)
        if old is not None:
            del self._ids[old.state][group]
            if old.state is State.READY:
                self._ready.remove(group, old)
            self.rows, self.bytes = self.rows - old.rows, self.bytes - old.size
        if held is not None:
            self._held[group] = held
            self._ids[held.state][group] = None
            if held.state is State.READY:
                self._ready.add(group, held)
            self.rows, self.bytes = self.rows + held.rows, self.bytes + held.size

    def of(self, *states: State) -> Iterator[tuple[bytes, HeldGroup]]:
        return ((group, self._held[group]) for state in states for group in self._ids[state])

    def count(self, state: State) -> int:
        return len(self._ids[state])


class Draft:
    """Changes within one spool transaction. `flush` before the commit; `adopt` after it, and only then they count."""

    def __init__(self, groups: Groups, writer: Writer, settings: ReplaySettings):
        self._groups, self._writer, self._settings = groups, writer, settings
        self._changed: dict[bytes, HeldGroup | None] = {}
        self.filtered: Counter[str] = Counter()  # groups that this draft filters, by reason
        self.marked: Counter[str] = Counter()  # groups that it forgets, by reason
        self.corrupt = 0  # groups that it discards
        self.ended: list[tuple[bytes, int]] = []  # groups that are whole now, with the lease of their play
        self.step = groups.step

    def get(self, group: bytes) -> HeldGroup | None:
        return self._changed[group] if group in self._changed else self._groups.get(group)

    def held(self, group: bytes) -> HeldGroup:
        """A group that is known to be held."""
        held = self.get(group)
        if held is None:
            raise LookupError(f"group {group.hex()} is not held")
        return held

    @property
    def empty(self) -> bool:
        return not self._changed

    def flush(self) -> None:
        for group, held in self._changed.items():
            if held is None:
                self._writer.drop_group(group)
            else:
                self._writer.put_group(group, held.pack())
        if self.step != self._groups.step:
            self._writer.put_step(self.step)

    def adopt(self) -> None:
        for group, held in self._changed.items():
            self._groups.put(group, held)
        self._groups.marks.update(self.marked)
        self._groups.step = self.step

    def lease(self, group: bytes, lease: int, order: int, version: int) -> None:
        """The group is open from now on, before a row has come: an actor with that weights version was leased it.

        A word of an older play, or of one that was abandoned or has ended, changes nothing.
        """
        held = self.get(group)
        if held is None and self._writer.marked(group):
            return
        if held is not None:
            if held.state not in PLAYED or lease <= held.lease:
                return
            self._writer.drop_rows(group, held.lease)
        self._changed[group] = HeldGroup(lease, order, reason=held.reason if held else "", leased=version)

    def store(self, row: Row, packed: Packed) -> str:
        """Takes one row; returns its outcome: stored, duplicate or fenced."""
        group, lease = row.group, row.lease
        held = self.get(group)
        if held is None and self._writer.marked(group):
            return "duplicate"
        if held is not None and held.state not in PLAYED:
            return "duplicate"
        if held is not None and lease < held.lease + (held.state is State.ABANDONED):
            return "fenced"
        if held is None or lease > held.lease:
            if held is not None:
                self._writer.drop_rows(group, held.lease)
            held = HeldGroup(lease, row.order, reason=held.reason if held else "")
        if not self._writer.put_row(packed):
            return "duplicate"
        held = held.with_row(row.turn, row.version, row.turns, row.spread, row.size)
        self._changed[group] = held
        if held.whole:
            self._end(group, held)
        return "stored"

    def _end(self, group: bytes, held: HeldGroup) -> None:
        self.ended.append((group, held.lease))
        if held.turns == 0:
            self.forget(group, EMPTY)
        elif math.isnan(held.spread):  # every episode broke off
            self._filter(group, held, BROKEN, 0)
        elif self._settings.drop_flat and held.spread == 0:
            self._filter(group, held, FLAT, 0)
        else:
            self._changed[group] = held._replace(state=State.READY, reason="")

    def _filter(self, group: bytes, held: HeldGroup, reason: str, step: int) -> None:
        self._changed[group] = held._replace(state=State.FILTERED, reason=reason, step=step)
        self.filtered[reason] += 1

    def rows(self, group: bytes) -> list[Packed]:
        """The rows of a held group, close row last. Raises CorruptError when some are missing or cut.

        They end with the transaction. Whoever decodes them checks their checksums, and reports what is corrupt.
        """
        held = self.held(group)
        rows = self._writer.rows(group, held.lease)
        size = sum(len(record) for _, record in rows)
        if (len(rows), size) != (held.rows, held.size):
            found, stored = f"{len(rows)} rows of {size} bytes", f"{held.rows} of {held.size}"
            raise CorruptError(f"group {group.hex()} has {found}, where {stored} were stored")
        return rows

    def claim(self, group: bytes, holder: bytes, request: int, chance: float = 1.0) -> None:
        held = self.held(group)
        self._changed[group] = held._replace(state=State.CLAIMED, holder=holder, request=request, chance=chance)

    def give_back(self, group: bytes) -> None:
        held = self.get(group)
        if held is not None and held.state is State.CLAIMED:
            self._changed[group] = held._replace(state=State.READY, holder=b"", request=0)

    def commit(self, group: bytes, step: int, priority: float | None = None) -> bool:
        """Records that `step` used the group; again changes nothing. False when the group is not known here.

        A claim that was given back meanwhile does not matter: the use has happened, so the group is not ready any more.
        Raises RedraftError when the group was used by others meanwhile.
        """
        held = self.get(group)
        if held is None:
            if self._writer.was_used(group, step):
                return True
            if self._writer.marked(group):
                raise _lost_claim(group, step, "forgotten")
            return False
        if step in held.uses:
            return True
        if held.state in PLAYED:
            return False
        if held.state not in (State.READY, State.CLAIMED):
            raise _lost_claim(group, step, held.state.name.lower())
        self.step = max(self.step, step)
        uses = tuple(sorted((*held.uses, step)))
        priority = held.priority if priority is None else priority
        state = self._after(uses)
        self._changed[group] = held._replace(state=state, uses=uses, holder=b"", request=0, priority=priority)
        return True

    def resume(self, group: bytes, step: int) -> None:
        """Undoes the claim of a closed group and what was decided about it after `step`; open rows are abandoned."""
        held = self.held(group)
        if held.state is State.OPEN:
            self.abandon(group, held.lease)
        elif held.state is State.FILTERED and (held.reason != STALE or held.step <= step):
            return
        elif held.state is not State.ABANDONED:
            uses = tuple(use for use in held.uses if use <= step)
            back = held._replace(state=self._after(uses), uses=uses, holder=b"", request=0, reason="", step=0)
            if back != held:
                self._changed[group] = back

    def _after(self, uses: Collection[int]) -> State:
        return State.USED if len(uses) >= self._settings.max_uses else State.READY

    def filter_stale(self, group: bytes, step: int) -> None:
        """A stale group that was used before only loses its further uses, so that a resume can still undo the first."""
        held = self.held(group)
        if held.uses:
            self._changed[group] = held._replace(state=State.USED)
        else:
            self._filter(group, held, STALE, step)

    def abandon(self, group: bytes, lease: int) -> None:
        """Drops the open rows of plays up to `lease` and refuses what still comes of them."""
        held = self.get(group)
        if held is None and self._writer.marked(group):
            return
        if held is not None and (held.state not in PLAYED or lease < held.lease):
            return
        if held is not None:
            self._writer.drop_rows(group, held.lease)
        order, reason = (held.order, held.reason) if held else (0, "")
        self._changed[group] = HeldGroup(lease, order, State.ABANDONED, reason=reason)

    def forget(self, group: bytes, reason: str = "") -> None:
        """Deletes all but a mark with the reason: the given one, or why it was filtered, or TRAINED."""
        held = self.held(group)
        reason = reason or held.reason or TRAINED
        self._writer.drop_rows(group, held.lease)
        self._writer.put_mark(group, reason, held.uses)
        self._changed[group] = None
        self.marked[reason] += 1

    def discard_corrupt(self, group: bytes) -> None:
        """Deletes the rows of a corrupt group and remembers that it is to be played again, under a higher token."""
        held = self.held(group)
        self._writer.drop_rows(group, held.lease)
        self._changed[group] = HeldGroup(held.lease, held.order, State.ABANDONED, reason=CORRUPT)
        self.corrupt += 1

    def discard_unreadable(self, group: bytes) -> None:
        """The same for a group whose state is corrupt. Where no row tells its order, all of it is erased: a resumed run
        plays it."""
        row = self._writer.sound_row(group)
        self._writer.drop_rows(group)
        self._writer.drop_group(group)
        if row is not None:
            self._changed[group] = HeldGroup(row.lease, row.order, State.ABANDONED, reason=CORRUPT)
        self.corrupt += 1


def _lost_claim(group: bytes, step: int, state: str) -> RedraftError:
    problem = f"step {step} cannot commit group {group.hex()}, which is {state}: its claim was lost"
    return RedraftError(f"{problem}. {LOST_CLAIM}")
