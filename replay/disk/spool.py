"""The spool: rows, states of groups, and marks of forgotten ones in one LMDB folder, changed in whole transactions."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from protocols.errors import SettingError
from protocols.wire import ENTRY, KEY_BYTES, PLAY_BYTES, SCHEMA, Bytes, Packed, Row, sound

FULL = (lmdb.MapFullError, lmdb.DiskError)  # the map or the disk has no room: the transaction changed nothing
GROWTH_BYTES = 16 << 20
LEASE = struct.Struct(">i")


class CorruptError(Exception):
    """What is stored is not what was written: a checksum fails, or rows are missing."""


class Spool:
    """One run's folder. Raises SettingError when the folder belongs to another run or another process holds it.

    With `sync` a commit is on the disk; without, it is in the page cache: it survives this process, not the machine.
    """

    def __init__(self, folder: Path, run_id: str, map_bytes: int, sync: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._env = lmdb.open(
                str(folder), map_size=map_bytes, max_dbs=4, sync=sync, metasync=sync, writemap=False, readahead=False
            )
        except lmdb.Error as error:
            os.close(self._lock)
            cure = "Make room, choose another folder, or see `redraft replay verify`"
            raise SettingError("replay.folder", f"{folder} cannot be opened: {error}", cure) from None
        self.sweep()
        self._map_bytes = self._env.info()["map_size"]  # an older, larger one stays
        self._rows, self._groups, self._marks, self._meta = (
            self._env.open_db(name) for name in (b"rows", b"groups", b"marks", b"meta")
        )
        try:
            self._own(folder, run_id)
        except SettingError:
            self.close()
            raise

    def _own(self, folder: Path, run_id: str) -> None:
        mine = f"{SCHEMA}:{run_id}".encode()
        with self._env.begin(write=True, db=self._meta) as txn:
            if not txn.put(b"run", mine, overwrite=False) and (found := txn.get(b"run", b"")) != mine:
                problem = f"{folder} holds schema:run {found.decode()}, not {mine.decode()}"
                raise SettingError("replay.folder", problem, "Choose another folder for this run")

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """One transaction: committed at the end of the block, undone when the block raises."""
        try:
            with self._env.begin(write=True, buffers=True) as txn:
                yield Writer(txn, self._rows, self._groups, self._marks, self._meta)
        except lmdb.Error as error:
            # LMDB calls a write that was cut short, as on a full disk, an input/output error.
            if any(os.strerror(number) in str(error) for number in (errno.EIO, errno.EDQUOT)):
                raise lmdb.DiskError(str(error)) from None
            raise

    def groups(self) -> Iterator[tuple[bytes, bytes]]:
        """Every held group's id and packed state."""
        with self._env.begin(db=self._groups) as txn:
            yield from txn.cursor()

    def marks(self) -> Counter[str]:
        """How many groups were forgotten, by reason."""
        with self._env.begin(db=self._marks) as txn:
            return Counter(reason_of(mark) for mark in txn.cursor().iternext(keys=False))

    def step(self) -> int:
        """The last step that used groups, in the history that stands."""
        with self._env.begin(db=self._meta) as txn:
            step = txn.get(b"step", b"0")
        return int(step) if step.isdigit() else 0  # the uses of held groups say it again

    def known(self, group: bytes) -> bool:
        """Whether the group was forgotten."""
        with self._env.begin(db=self._marks) as txn:
            return txn.get(group) is not None

    def sweep(self) -> None:
        """Forgets readers that died: pages that they could still read are not used again."""
        self._env.reader_check()

    def grow(self) -> None:
        """Adds room for changes that free room: in a full map even a delete needs pages."""
        self._map_bytes += GROWTH_BYTES
        self._env.set_mapsize(self._map_bytes)

    def close(self) -> None:
        self._env.sync(True)
        self._env.close()
        os.close(self._lock)


class Writer:
    """The changes of one transaction. A row is stored as its index entry followed by its record.

    Rows that it returns are views into the map: they end with the transaction.
    """

    def __init__(self, txn: lmdb.Transaction, rows, groups, marks, meta):
        self._txn, self._rows, self._groups, self._marks, self._meta = txn, rows, groups, marks, meta

    def put_row(self, packed: Packed) -> bool:
        """False when that row is there already; it is left as it was."""
        return self._txn.put(packed[0][:KEY_BYTES], b"".join(packed), overwrite=False, db=self._rows)

    def rows(self, group: bytes, lease: int) -> list[Packed]:
        """The rows of one play as they are stored, close row last; their checksums are for who uses them."""
        prefix = group + LEASE.pack(lease)
        found = []
        with self._txn.cursor(self._rows) as cursor:
            more = cursor.set_range(prefix)
            while more:
                key, value = cursor.item()
                if key[:PLAY_BYTES] != prefix:
                    break
                found.append((value[: ENTRY.size], value[ENTRY.size :]))
                more = cursor.next()
        return found

    def sound_row(self, group: bytes) -> Row | None:
        """Any row of the group that is as it was written."""
        with self._txn.cursor(self._rows) as cursor:
            more = cursor.set_range(group)
            while more and cursor.key()[: len(group)] == group:
                if (found := read_row(*cursor.item())) is not None:
                    return found[0]
                more = cursor.next()
        return None

    def drop_rows(self, group: bytes, lease: int | None = None) -> None:
        """Deletes the rows of one play, or of all plays of the group."""
        prefix = group if lease is None else group + LEASE.pack(lease)
        with self._txn.cursor(self._rows) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()[: len(prefix)]) == prefix:
                found = cursor.delete()

    def put_group(self, group: bytes, packed: bytes) -> None:
        self._txn.put(group, packed, db=self._groups)

    def drop_group(self, group: bytes) -> None:
        self._txn.delete(group, db=self._groups)

    def put_step(self, step: int) -> None:
        self._txn.put(b"step", str(step).encode(), db=self._meta)

    def put_mark(self, group: bytes, reason: str, uses: Sequence[int]) -> None:
        """Keeps why the group was forgotten, and the steps that used it."""
        self._txn.put(group, " ".join([reason, *map(str, uses)]).encode(), db=self._marks)

    def marked(self, group: bytes) -> bool:
        return self._txn.get(group, db=self._marks) is not None

    def was_used(self, group: bytes, step: int) -> bool:
        """Whether the forgotten group was used by `step`."""
        return str(step).encode() in bytes(self._txn.get(group, b"", db=self._marks)).split(b" ")[1:]


def reason_of(mark: bytes) -> str:
    """Why a group was forgotten."""
    return bytes(mark).partition(b" ")[0].decode(errors="replace")


def read_row(key: Bytes, value: Bytes) -> tuple[Row, Packed] | None:
    """A row as it is stored; None when key, entry or record is not what was written."""
    entry, record = bytes(value[: ENTRY.size]), value[ENTRY.size :]
    if len(entry) < ENTRY.size:
        return None
    row = Row._make(ENTRY.unpack(entry))
    return (row, (entry, record)) if entry[:KEY_BYTES] == bytes(key) and sound(row, entry, record) else None


def _lock(folder: Path) -> int:
    """Two services on one folder would each miss what the other stores. The lock goes with its process."""
    lock = os.open(folder / "service.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        problem = f"another replay service works on {folder}"
        raise SettingError("replay.folder", problem, "Stop that one first") from None
    return lock
