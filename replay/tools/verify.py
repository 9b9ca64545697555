"""Reads all that a spool holds and says what is not as it was written.

It is read in a process of its own (`apart`): on corrupt pages LMDB ends its process as often as it raises an error.
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
from replay.disk.reader import SpoolReader, UnreadableError
from replay.disk.spool import CorruptError, read_row
from replay.server.groups import BROKEN, EMPTY, FLAT, PLAYED, STALE, TRAINED, HeldGroup

WHYS = "|".join((TRAINED, FLAT, BROKEN, STALE, EMPTY)).encode()
MARK = re.compile(rb"(%s)( \d+)*" % WHYS)  # why, and the steps that used it
PLAY = struct.Struct(">ii")  # lease and turn: a row's key after the group
END_S = 5.0  # that a reader has to close the spool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reader of `folder` has come: the groups that it has read, of `total`, and their rows and bytes of rows.

    `group` is the one being read; while none is, `last` is the one before (empty at the start).
    """

    folder: Path
    last: bytes = b""
    group: bytes = b""
    groups: int = 0
    rows: int = 0
    size: int = 0
    total: int = 0

    def past(self, rows: Sequence[tuple[bytes, bytes]] = ()) -> Progress:
        """After the group that was being read, which has these keys and stored rows."""
        size = self.size + sum(len(stored) for _, stored in rows)
        return Progress(self.folder, self.group, b"", self.groups + 1, self.rows + len(rows), size, self.total)


@dataclass(frozen=True, slots=True)
class Corruption:
    """What is not as it was written, in one line. Without a `group` it concerns the whole `folder`."""

    folder: Path
    group: bytes
    problem: str
    held: HeldGroup | None = None

    def __str__(self) -> str:
        what = f"{self.folder}: group {self.group.hex()}" if self.group else str(self.folder)
        if (held := self.held) is not None:
            what += f" ({held.state.name.lower()}, lease {held.lease}, order {held.order})"
        return f"{what}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Whole:
    """A closed group of `run` as it is stored, with nothing corrupt."""

    run: str
    held: HeldGroup
    stored: list[tuple[bytes, bytes]]


def apart(work: Callable[..., Iterator], *arguments) -> Iterator:
    """Yields what the generator `work(*arguments)` yields, from a process of its own, and raises what it raises.

    When that process is ended otherwise, as by a corrupt page or too little memory, raises UnreadableError.
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
            raise UnreadableError(f"the process that read it was ended by {how}")
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


def going_on(work: Callable[..., Iterator], at: Progress, *arguments) -> Iterator:
    """Yields what `work(at, *arguments)` yields, from a process of its own; that is a Progress before and
    after each group that it reads.

    When reading a group ends the process, yields a Corruption for it, and another process goes on after it.
    """
    ended = set()
    while True:
        try:
            for found in apart(work, at, *arguments):
                at = found if isinstance(found, Progress) else at
                yield found
            return
        except UnreadableError as error:
            again = at.group and at.group not in ended
            yield Corruption(at.folder, at.group, str(error) if again else f"{error}; the rest was not read")
            if not again:
                return
            ended.add(at.group)
            at = at.past()


def verify(folder: Path, run_id: str | None = None) -> Iterator[Progress | Corruption]:
    """Reads all that is stored, in a process of its own; yields its Progress, and a Corruption for what is wrong.

    Where nothing is corrupt, each row and each state of a group is as it was written, closed groups are whole and can
    be decoded, and every row belongs to a held group. Not checked, for they have no checksum: ids of forgotten groups.
    """
    return going_on(read_all, Progress(folder), run_id)


def read_all(at: Progress, run_id: str | None) -> Iterator[Progress | Corruption]:
    """As `verify`, from the group after `at.last` on and in this process, which corrupt pages may end."""
    try:
        with SpoolReader(at.folder, run_id) as reader:
            at = replace(at, total=reader.counted()["groups"])
            for check in (_verify_groups, _verify_rows, _verify_marks):
                try:
                    yield from check(reader, at)
                except UnreadableError as error:
                    yield Corruption(at.folder, b"", str(error))
    except UnreadableError as error:
        yield Corruption(at.folder, b"", str(error))


def read_chosen(at: Progress, run_id: str | None, states: Collection[str]) -> Iterator[Progress | Corruption | Whole]:
    """The groups after `at.last` in these states, or whose state cannot be read; corrupt pages may end the process."""
    try:
        with SpoolReader(at.folder, run_id) as reader:
            at = replace(at, total=sum(_chosen(packed, states) for _, packed in reader.groups()))
            for group, packed in reader.groups(at.last):
                if not _chosen(packed, states):
                    continue
                yield (at := replace(at, group=group))
                held, stored, problems = examine(reader, group, packed)
                if held is None or problems:
                    yield Corruption(at.folder, group, "; ".join(problems), held)
                else:
                    yield Whole(reader.run_id, held, stored)
                yield (at := at.past(stored))
    except UnreadableError as error:
        yield Corruption(at.folder, b"", str(error))


def _chosen(packed: bytes, states: Collection[str]) -> bool:
    """Whether a group is in one of these states, or cannot be read."""
    held = unpacked(packed)
    return held is None or held.state.name.lower() in states


def _verify_groups(reader: SpoolReader, at: Progress) -> Iterator[Progress | Corruption]:
    used = 0
    for group, packed in reader.groups(at.last):
        yield (at := replace(at, group=group))
        held, rows, problems = examine(reader, group, packed)
        if problems:
            yield Corruption(reader.folder, group, "; ".join(problems), held)
        used = max(used, *held.uses, 0) if held is not None else used
        yield (at := at.past(rows))
    yield at
    yield from _as_counted(reader, "groups", at.groups)
    if used > (step := reader.step()):
        yield Corruption(reader.folder, b"", f"its last step is {step}, and a group was used by step {used}")


def _verify_rows(reader: SpoolReader, at: Progress) -> Iterator[Corruption]:
    found, last = 0, b""
    for key in reader.row_keys():
        if key <= last:
            yield Corruption(reader.folder, key[:GROUP_BYTES], "its rows are not in the order of their keys")
        if key[:GROUP_BYTES] != last[:GROUP_BYTES] and not reader.held(key[:GROUP_BYTES]):
            yield Corruption(reader.folder, key[:GROUP_BYTES], "it has rows and no state")
        found, last = found + 1, key
    yield from _as_counted(reader, "rows", found)


def _verify_marks(reader: SpoolReader, at: Progress) -> Iterator[Corruption]:
    found = 0
    for group, mark in reader.marks():
        if not MARK.fullmatch(mark):
            yield Corruption(reader.folder, group, f"it was forgotten for an unknown reason: {mark!r:.40}")
        found += 1
    yield from _as_counted(reader, "marks", found)


def _as_counted(reader: SpoolReader, what: str, found: int) -> Iterator[Corruption]:
    if found != (counted := reader.counted()[what]):
        yield Corruption(reader.folder, b"", f"found {found} of {counted} {what}")


def examine(reader: SpoolReader, group: bytes, packed: bytes) -> tuple[HeldGroup | None, list[tuple], list[str]]:
    """A held group (None when its state cannot be read), its stored rows with their keys, and what is wrong."""
    held = unpacked(packed)
    problems = [] if held is not None else ["its state fails its checksum"]
    try:
        stored = reader.rows(group)
        forgotten = reader.marked(group)
    except UnreadableError as error:
        return held, [], [*problems, str(error)]
    rows = []
    for key, value in stored:
        if (row := read_row(key, value)) is None:
            problems.append(f"{_name(key)} fails its checksum")
        else:
            rows.append(row)
    if forgotten:
        problems.append("it is held, and was forgotten")
    if held is not None and not problems:
        problems = _contradictions(held, rows)
    return held, stored, problems


def unpacked(packed: bytes) -> HeldGroup | None:
    """A stored state of a group; None when it is not as it was written."""
    try:
        return HeldGroup.unpack(packed)
    except (CorruptError, TypeError, ValueError):
        return None


def _contradictions(held: HeldGroup, rows: list[tuple[Row, Packed]]) -> list[str]:
    """What the rows of a group, each of them sound, say against its state."""
    if other := {row.lease for row, _ in rows} - {held.lease}:
        return [f"it also has rows of lease {min(other)}"]
    if len(rows) != held.rows:
        return [f"it has {len(rows)} rows where {held.rows} were stored"]
    if (size := sum(row.size for row, _ in rows)) != held.size:
        return [f"its rows have {size} bytes where {held.size} were stored"]
    try:
        if held.state in PLAYED:
            for row, (_, stored) in rows:
                if row.turn != CLOSE:
                    decode_turn(row.group, row.lease, row.turn, stored)
            return []
        turns = len(whole_group(rows).turns)
    except WireError as error:
        return [str(error)]
    return [] if turns == held.turns else [f"it has {turns} turns where its close row promised {held.turns}"]


def _name(key: bytes) -> str:
    """Which row it is, by its key."""
    if len(key) != KEY_BYTES:
        return "a row with a corrupt key"
    lease, turn = PLAY.unpack_from(key, GROUP_BYTES)
    return f"the close row of lease {lease}" if turn == CLOSE else f"turn {turn} of lease {lease}"
