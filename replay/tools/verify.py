"""Reads all that a spool holds and says what is not as it was written.

It is read in a process of its own (`apart`): on damaged pages LMDB ends its process as often as it raises an error.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import struct
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocols.errors import WireError
from protocols.keys import GROUP_BYTES
from protocols.wire import CLOSE, KEY_BYTES, Packed, Row, decode_turn, whole_group
from replay.disk.reader import DamagedError, SpoolReader
from replay.disk.spool import TornError, read_row
from replay.server.groups import EMPTY, FLAT, PLAYED, STALE, TRAINED, Record

MARK = re.compile(rb"(%s)( \d+)*" % "|".join((TRAINED, FLAT, STALE, EMPTY)).encode())  # why, and the steps that used it
PLAY = struct.Struct(">ii")  # lease and turn: a row's key after the group
END_S = 5.0  # that a reader has to close the spool


@dataclass(frozen=True, slots=True)
class At:
    """How far a reader of `folder` has come: so many groups, their rows and bytes of rows, of `total` groups.

    `group` is being read; where none is, `last` was the last one (none at the start).
    """

    folder: Path
    last: bytes = b""
    group: bytes = b""
    groups: int = 0
    rows: int = 0
    size: int = 0
    total: int = 0

    def past(self, rows: Sequence[tuple[bytes, bytes]] = ()) -> At:
        """The group that was being read has these keys and stored rows."""
        size = self.size + sum(len(stored) for _, stored in rows)
        return At(self.folder, self.group, b"", self.groups + 1, self.rows + len(rows), size, self.total)


@dataclass(frozen=True, slots=True)
class Damage:
    """What is not as it was written, in one line. Without a `group` it concerns the whole `folder`."""

    folder: Path
    group: bytes
    problem: str
    record: Record | None = None

    def __str__(self) -> str:
        place = f"{self.folder}: group {self.group.hex()}" if self.group else str(self.folder)
        if (record := self.record) is not None:
            place += f" ({record.state.name.lower()}, lease {record.lease}, order {record.order})"
        return f"{place}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Whole:
    """A closed group of `run` as it is stored, without damage."""

    run: str
    record: Record
    stored: list[tuple[bytes, bytes]]


def apart(work: Callable[..., Iterator], *arguments) -> Iterator:
    """Yields what the generator `work(*arguments)` yields, from a process of its own, and raises what it raises.

    When that process is ended otherwise, as by a damaged page or too little memory, raises DamagedError.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, work, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        while (item := _received(receiver)) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
        child.join()
        if child.exitcode:
            how = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit code {child.exitcode}"
            raise DamagedError(f"the process that read it was ended by {how}")
    finally:
        receiver.close()
        child.join(END_S)
        child.kill()


def _received(receiver):
    try:
        return receiver.recv()
    except EOFError:
        return None


def _send(sender, work: Callable[..., Iterator], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and then reads no more
    try:
        for item in work(*arguments):
            sender.send(item)
    except BrokenPipeError:
        return
    except Exception as error:
        error.add_note(traceback.format_exc())
        sender.send(error)


def going_on(work: Callable[..., Iterator], at: At, *arguments) -> Iterator:
    """Yields what `work(at, *arguments)` yields, which is At before and after each group that it reads, from apart.

    When reading a group ends the process, yields a Damage for it, and another process goes on after it.
    """
    ended = set()
    while True:
        try:
            for found in apart(work, at, *arguments):
                at = found if isinstance(found, At) else at
                yield found
            return
        except DamagedError as error:
            again = at.group and at.group not in ended
            yield Damage(at.folder, at.group, str(error) if again else f"{error}; the rest was not read")
            if not again:
                return
            ended.add(at.group)
            at = at.past()


def verify(folder: Path, run_id: str | None = None) -> Iterator[At | Damage]:
    """Reads all that is stored, in a process of its own; yields how far it is, and a Damage for what is not whole.

    Of a spool without damage each row and record is as it was written, closed groups are whole and can be decoded, and
    no row lies there without a record. Not checked, for want of a checksum: the ids of forgotten groups.
    """
    return going_on(read_all, At(folder), run_id)


def read_all(at: At, run_id: str | None) -> Iterator[At | Damage]:
    """As `verify`, from the group after `at.last` on and in this process, which damage may end."""
    try:
        with SpoolReader(at.folder, run_id) as reader:
            at = replace(at, total=reader.counted()["records"])
            for check in (_verify_groups, _verify_rows, _verify_marks):
                try:
                    yield from check(reader, at)
                except DamagedError as error:
                    yield Damage(at.folder, b"", str(error))
    except DamagedError as error:
        yield Damage(at.folder, b"", str(error))


def read_chosen(at: At, run_id: str | None, states: Collection[str]) -> Iterator[At | Damage | Whole]:
    """The groups after `at.last` in these states, or whose record cannot be read; damage may end the process."""
    try:
        with SpoolReader(at.folder, run_id) as reader:
            at = replace(at, total=sum(_chosen(packed, states) for _, packed in reader.records()))
            for group, packed in reader.records(at.last):
                if not _chosen(packed, states):
                    continue
                yield (at := replace(at, group=group))
                record, stored, problems = examine(reader, group, packed)
                whole = Whole(reader.run_id, record, stored)
                yield Damage(at.folder, group, "; ".join(problems), record) if problems else whole
                yield (at := at.past(stored))
    except DamagedError as error:
        yield Damage(at.folder, b"", str(error))


def _chosen(packed: bytes, states: Collection[str]) -> bool:
    """Whether the record of a group says one of these states, or cannot be read."""
    record = unpacked(packed)
    return record is None or record.state.name.lower() in states


def _verify_groups(reader: SpoolReader, at: At) -> Iterator[At | Damage]:
    used = 0
    for group, packed in reader.records(at.last):
        yield (at := replace(at, group=group))
        record, rows, problems = examine(reader, group, packed)
        if problems:
            yield Damage(reader.folder, group, "; ".join(problems), record)
        used = max(used, *record.uses, 0) if record is not None else used
        yield (at := at.past(rows))
    yield at
    yield from _as_counted(reader, "records", at.groups)
    if used > (step := reader.step()):
        yield Damage(reader.folder, b"", f"its last step is {step}, and a group was used by step {used}")


def _verify_rows(reader: SpoolReader, at: At) -> Iterator[Damage]:
    found, last = 0, b""
    for key in reader.row_keys():
        if key <= last:
            yield Damage(reader.folder, key[:GROUP_BYTES], "its rows are not in the order of their keys")
        if key[:GROUP_BYTES] != last[:GROUP_BYTES] and not reader.held(key[:GROUP_BYTES]):
            yield Damage(reader.folder, key[:GROUP_BYTES], "it has rows and no record")
        found, last = found + 1, key
    yield from _as_counted(reader, "rows", found)


def _verify_marks(reader: SpoolReader, at: At) -> Iterator[Damage]:
    found = 0
    for group, mark in reader.marks():
        if not MARK.fullmatch(mark):
            yield Damage(reader.folder, group, f"it was forgotten for a reason that nobody writes: {mark!r:.40}")
        found += 1
    yield from _as_counted(reader, "marks", found)


def _as_counted(reader: SpoolReader, what: str, found: int) -> Iterator[Damage]:
    if found != (counted := reader.counted()[what]):
        yield Damage(reader.folder, b"", f"{found} {what} can be found, of {counted}")


def examine(reader: SpoolReader, group: bytes, packed: bytes) -> tuple[Record | None, list[tuple], list[str]]:
    """A held group's record (None when it cannot be read), its stored rows with their keys, and what is wrong."""
    record = unpacked(packed)
    problems = [] if record is not None else ["its record fails its checksum"]
    try:
        stored = reader.rows(group)
        forgotten = reader.marked(group)
    except DamagedError as error:
        return record, [], [*problems, str(error)]
    rows = []
    for key, value in stored:
        if (row := read_row(key, value)) is None:
            problems.append(f"{_name(key)} fails its checksum")
        else:
            rows.append(row)
    if forgotten:
        problems.append("it is held, and was forgotten")
    if record is not None and not problems:
        problems = _contradictions(record, rows)
    return record, stored, problems


def unpacked(packed: bytes) -> Record | None:
    """A stored record; None when it is not as it was written."""
    try:
        return Record.unpack(packed)
    except (TornError, TypeError, ValueError):
        return None


def _contradictions(record: Record, rows: list[tuple[Row, Packed]]) -> list[str]:
    """What the rows of a group, each of them sound, say against its record."""
    if other := {row.lease for row, _ in rows} - {record.lease}:
        return [f"rows of lease {min(other)} lie beside it"]
    if len(rows) != record.rows:
        return [f"it has {len(rows)} rows where {record.rows} were stored"]
    if (size := sum(row.size for row, _ in rows)) != record.size:
        return [f"its rows have {size} bytes where {record.size} were stored"]
    try:
        if record.state in PLAYED:
            for row, (_, stored) in rows:
                if row.turn != CLOSE:
                    decode_turn(row.group, row.lease, row.turn, stored)
            return []
        turns = len(whole_group(rows).turns)
    except WireError as error:
        return [str(error)]
    return [] if turns == record.turns else [f"it has {turns} turns where its close row promised {record.turns}"]


def _name(key: bytes) -> str:
    """Which row it is, by its key."""
    if len(key) != KEY_BYTES:
        return "a row with a damaged key"
    lease, turn = PLAY.unpack_from(key, GROUP_BYTES)
    return f"the close row of lease {lease}" if turn == CLOSE else f"turn {turn} of lease {lease}"
