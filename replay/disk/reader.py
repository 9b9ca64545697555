"""A read-only view of a spool: one snapshot, also while a service works on the folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import lmdb

from protocols.errors import RedraftError, SettingError
from protocols.wire import SCHEMA

SETTING = "SOURCE"
WALK, LOOK = 0, 1  # the transaction of those who go through all of a table, and the one of single questions beside it


class UnreadableError(RedraftError):
    """A spool is corrupt in its structure: LMDB, or this process, cannot read on."""


class SpoolReader:
    """What the spool in `folder` holds, as bytes, in the order of the keys; see `replay.disk.spool` for what they mean.

    All of it is one moment's state: a service may go on, but until `close` it uses no page again that was in use then.
    Nothing is written but this reader's slot in LMDB's lock file. A folder that is open in this process already, as
    that of a Store is, cannot be opened again.

    Raises SettingError when the folder is not a spool, or one of another run than `run_id` (None: any) or of another
    schema, or cannot be read safely. It and all methods raise UnreadableError; other groups may still be readable.
    """

    def __init__(self, folder: Path, run_id: str | None = None):
        self.folder = folder
        if not os.access(folder / "data.mdb", os.R_OK):
            raise _no_spool(folder, "there is no data.mdb in it that can be read")
        locked = all(os.access(path, os.W_OK) for path in (folder, folder / "lock.mdb") if path.exists())
        self._transactions: list[lmdb.Transaction[bytes]] = []
        with ExitStack() as opened:
            if not locked:
                opened.enter_context(_no_service(folder))
            with _readable(folder):
                self._env = lmdb.open(str(folder), map_size=0, readonly=True, lock=locked, create=False, max_dbs=4)
                opened.callback(self._env.close)
                self._env.reader_check()  # a reader that was killed would keep the service from using pages again
                self._meta = self._table(b"meta")
                self.run_id = self._owner(run_id)
                self._rows, self._groups, self._marks = map(self._table, (b"rows", b"groups", b"marks"))
                opened.callback(self._abort)
                self._begin()
            self._opened = opened.pop_all()

    def _table(self, name: bytes):
        try:
            return self._env.open_db(name, create=False)
        except lmdb.NotFoundError:
            raise _no_spool(self.folder, "its data.mdb was written by something else, or is corrupt") from None

    def _owner(self, run_id: str | None) -> str:
        with self._env.begin(db=self._meta) as txn:
            found = txn.get(b"run", b"").decode(errors="replace")
        schema, _, owner = found.partition(":")
        if not owner:
            raise _no_spool(self.folder, "it does not name a run")
        if schema != str(SCHEMA):
            cure = "Use the version of Redraft that wrote it"
            raise SettingError(SETTING, f"{self.folder} holds schema {schema}, and this Redraft reads {SCHEMA}", cure)
        if run_id not in (None, owner):
            raise SettingError(SETTING, f"{self.folder} belongs to run {owner}, not to {run_id}", "Name that run's own")
        return owner

    def _begin(self) -> None:
        """Both transactions, of one moment."""
        while len({transaction.id() for transaction in self._transactions}) != 1:  # a service has just changed it
            self._abort()
            self._transactions = [self._env.begin() for _ in (WALK, LOOK)]

    def groups(self, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The id and the packed state of every held group, or of those after this one."""
        with self._read(WALK) as txn, txn.cursor(self._groups) as cursor:
            for group, packed in cursor.iternext() if cursor.set_range(after) else ():
                if group != after:
                    yield group, packed

    def marks(self) -> Iterator[tuple[bytes, bytes]]:
        """The id of every forgotten group and its mark: the reason, then the steps that used it."""
        with self._read(WALK) as txn, txn.cursor(self._marks) as cursor:
            yield from cursor.iternext()

    def row_keys(self) -> Iterator[bytes]:
        """The key of every row; it begins with the group's id."""
        with self._read(WALK) as txn, txn.cursor(self._rows) as cursor:
            yield from cursor.iternext(keys=True, values=False)

    def rows(self, group: bytes) -> list[tuple[bytes, bytes]]:
        """The key and the stored bytes of each row of a group, of whatever lease."""
        found = []
        with self._read(LOOK) as txn, txn.cursor(self._rows) as cursor:
            more = cursor.set_range(group)
            while more and cursor.key().startswith(group):
                found.append(cursor.item())
                more = cursor.next()
        return found

    def held(self, group: bytes) -> bool:
        """Whether it is held."""
        with self._read(LOOK) as txn:
            return txn.get(group, db=self._groups) is not None

    def marked(self, group: bytes) -> bool:
        """Whether it was forgotten."""
        with self._read(LOOK) as txn:
            return txn.get(group, db=self._marks) is not None

    def step(self) -> int:
        """The last step that used groups, in the history that stands."""
        with self._read(LOOK) as txn:
            stored = txn.get(b"step", b"0", db=self._meta)
        if not stored.isdigit():
            raise UnreadableError(f"the last step in {self.folder} cannot be read: {stored!r:.40}")
        return int(stored)

    def counted(self) -> dict[str, int]:
        """How many groups, marks and rows LMDB says there are."""
        with self._read(LOOK) as txn:
            kinds = {"groups": self._groups, "marks": self._marks, "rows": self._rows}
            return {name: txn.stat(kind)["entries"] for name, kind in kinds.items()}

    def copy(self, folder: Path) -> None:
        """Writes what the spool holds now into an empty folder, as a spool of its own without unused pages."""
        with _readable(self.folder):
            self._env.copy(str(folder), compact=True)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextmanager
    def _read(self, use: int) -> Iterator[lmdb.Transaction[bytes]]:
        """The transaction for that use. LMDB wants another one after an error; it must be of the same moment."""
        try:
            with _readable(self.folder):
                yield self._transactions[use]
        except UnreadableError:
            moment = self._transactions[use].id()
            self._transactions[use].abort()
            self._transactions[use] = self._env.begin()
            if self._transactions[use].id() != moment:
                cure = "Verify again when no service works on it"
                raise SettingError(SETTING, f"{self.folder} is corrupt and still being written to", cure) from None
            raise

    def _abort(self) -> None:
        for transaction in self._transactions:
            transaction.abort()
        self._transactions = []


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, MemoryError) as error:  # a corrupt length may ask for any amount of memory
        raise UnreadableError(f"LMDB cannot read {folder}: {error or 'out of memory'}") from None


def _no_spool(folder: Path, why: str) -> SettingError:
    cure = "The spools of a run are spool/0, spool/1, ... in its folder"
    return SettingError(SETTING, f"{folder} is not a spool: {why}", cure)


@contextmanager
def _no_service(folder: Path) -> Iterator[None]:
    """Where LMDB's lock file cannot be written, a service would use pages again that this reads: none may run
    meanwhile. Raises SettingError when one does.
    """
    if not (folder / "service.lock").exists():
        yield
        return
    with ExitStack() as opened:
        try:
            lock = os.open(folder / "service.lock", os.O_RDONLY)
            opened.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            problem = f"{folder} is not writable, so it can only be read while no service works on it"
            raise SettingError(SETTING, problem, "Stop the service, or be the user that runs it") from None
        yield
