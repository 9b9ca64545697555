"""A run folder has one owner: the command that holds the lock of its file `lock`.

The lock is the kernel's (flock): it lies on the file, so it goes with a folder that is renamed, and it ends with the
process that holds it, however that ends. A new run's folder is made aside, locked, and only then given its name, so
there is no moment at which the name is there without an owner. Over NFS the lock holds between hosts too; where a file
system has no locks, lease_file.py takes its place.

Those who only read a run and must not find another one at its path meanwhile (an evaluation, an export) share the
lock of its file `readers`; `--again` renames nothing that is read. Without locks it cannot know.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from protocols.errors import RedraftError, SettingError
from redraft import lease_file
from redraft.lease_file import LeaseFile

LOCK, READERS = "lock", "readers"
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what flock raises on such a file system
TRIES, BETWEEN_TRIES_S = 5, 0.01
SETTING = "--run"
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


class Owner:
    """This command's hold on the run folder `folder`, from `take` or `begin` until `release` or its end."""

    def __init__(self, folder: Path, command: str):
        self.folder, self._command = folder, command
        self._held: dict[str, Hold] = {}  # of locked files in the folder
        _owners.add(self)

    def take(self, to_rename: bool = False) -> None:
        """Owns the folder that is there. Raises SettingError, naming who has it, when another command does."""
        for file in (LOCK, READERS) if to_rename else (LOCK,):
            if file not in self._held:
                self._held[file] = self._lock(self.folder / file)
        self._sign(self.folder)

    @contextlib.contextmanager
    def begin(self, kept: Path | None) -> Iterator[Path]:
        """Yields an empty folder to fill; then it has its name, and is owned. The one that had the name before becomes
        `kept`. Raises SettingError where another command was first."""
        self._sweep()
        fresh = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        fresh.mkdir(parents=True)
        lock = None
        try:
            lock = self._lock(fresh / LOCK)
            self._sign(fresh)
            yield fresh
            if kept is not None and self.folder.exists():
                self.take(to_rename=True)
                self.folder.rename(kept)
                self._held[LOCK].moved(kept)
            try:
                fresh.rename(self.folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise self._refusal() from None
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            if lock is not None:
                lock.close()
            raise
        self.release()  # what has another name now
        lock.moved(self.folder)
        self._held[LOCK] = lock

    def _sweep(self) -> None:
        """Removes folders that commands have begun to fill and, being killed, have not given the name."""
        for left in self.folder.parent.glob(f".{self.folder.name}.????????"):
            with contextlib.suppress(OSError):
                lock = Flock(_locked(left / LOCK, fcntl.LOCK_EX))
                shutil.rmtree(left, ignore_errors=True)
                lock.close()

    def release(self) -> None:
        """Also in a child process: the lock stays with those who still have it open."""
        while self._held:
            self._held.popitem()[1].close()

    def _lock(self, path: Path) -> Hold:
        try:
            return Flock(_soon_locked(path))
        except BlockingIOError:
            raise self._refusal(path.name) from None
        except FileNotFoundError:
            raise SettingError(SETTING, f"another command is just renaming {self.folder}", "Try again") from None
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return self._lease(path)
            raise SettingError(SETTING, *_unlocked(path, error)) from None

    def _lease(self, path: Path) -> Hold:
        """In place of a lock: of the folder. Nothing is known of readers then."""
        try:
            return LeaseFile.take(path.parent) if path.name == LOCK else Flock(None)
        except BlockingIOError:
            raise self._refusal() from None
        except OSError as error:
            raise SettingError(SETTING, *_unlocked(path, error)) from None

    def _refusal(self, file: str = LOCK) -> SettingError:
        if file == READERS:
            problem = f"{self.folder} is being read by an evaluation, an export or a chat"
            return SettingError(SETTING, problem, "End that, or choose another --run")
        try:
            who = json.loads((self.folder / LOCK).read_text())
            where = f"on {who['host']}"
            problem = f"{self.folder} is in use by `redraft {who['command']}`, process {who['pid']} {where}"
            kill = f"`kill {who['pid']}` {where}"
        except (OSError, ValueError, KeyError, TypeError):  # it is there, but has not signed yet
            return SettingError(SETTING, f"{self.folder} is in use by another command", "Choose another --run")
        stop = f"`redraft stop {self.folder.name}` (or {kill})" if who["command"] == "train" else kill
        return SettingError(SETTING, problem, f"Stop it with {stop}, or choose another --run")

    def _sign(self, folder: Path) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "command": self._command}
        line = (json.dumps(who) + "\n").encode()
        with open(_open(folder / LOCK), "r+b", buffering=0) as file:
            file.write(line)
            file.truncate(len(line))


class Hold(Protocol):
    """What keeps others out until it is closed."""

    def close(self) -> None: ...

    def moved(self, folder: Path) -> None:
        """The folder was renamed to that."""
        ...


class Flock:
    """The kernel's lock that `descriptor` holds, which Python opens close-on-exec; nothing where it is None."""

    def __init__(self, descriptor: int | None):
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def moved(self, folder: Path) -> None:
        """It lies on the file, wherever that is."""


def _unlocked(path: Path, error: OSError) -> tuple[str, str]:
    return f"{path} cannot be locked: {error.strerror}", "Start in a folder that can be written"


def holder(folder: Path) -> str | None:
    """Which command has a run folder now, in words; None where none has. Where its lock may not be read, none."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment: see _soon_locked
        return None
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS or not lease_file.held(folder):
            return None
    try:
        who = json.loads((folder / LOCK).read_text())
        return f"process {who['pid']} on {who['host']} has it"
    except (OSError, ValueError, KeyError, TypeError):
        return "another command has it"


def _soon_locked(path: Path) -> int:
    """The lock alone, tried a few times: `holder` takes it for a moment when it looks."""
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            return _locked(path, fcntl.LOCK_EX)
        time.sleep(BETWEEN_TRIES_S)
    return _locked(path, fcntl.LOCK_EX)


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """While it lasts, the run keeps its path. Raises RedraftError where it is about to get another.

    In a folder that this user may not write to, nothing can be promised.
    """
    with contextlib.ExitStack() as held:
        try:
            held.callback(os.close, _locked(folder / READERS, fcntl.LOCK_SH))
        except BlockingIOError:
            raise RedraftError(f"`redraft train --again` is about to rename {folder}: name the run anew then") from None
        except OSError:
            pass
        yield


def _locked(path: Path, kind: int) -> int:
    """A descriptor that holds the lock of the file that is at `path` now. Raises BlockingIOError when others do."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
            os.close(descriptor)  # its folder was renamed after it was opened
        except BaseException:
            os.close(descriptor)
            raise


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _forget_in_child() -> None:
    """A child process that outlives its parent must not keep the folder for it."""
    for owner in list(_owners):
        owner.release()


os.register_at_fork(after_in_child=_forget_in_child)
