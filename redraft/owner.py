"""A run folder has one owner: the command that holds the lock of its file `lock`.

The lock is the kernel's (flock): it lies on the file, so it goes with a folder that is renamed, and it ends with the
process that holds it, however that ends. A new run's folder is made aside, locked, and only then given its name, so
there is no moment at which the name is there without an owner. Over NFS the lock holds between hosts too.

Those who only read a run and must not find another one at its path meanwhile (an evaluation, an export) share the
lock of its file `readers`; `--again` renames nothing that is read.
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

from protocols.errors import RedraftError, SettingError

LOCK, READERS = "lock", "readers"
TRIES, BETWEEN_TRIES_S = 5, 0.01
SETTING = "--run"
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


class Owner:
    """This command's hold on the run folder `folder`, from `take` or `begin` until `release` or its end."""

    def __init__(self, folder: Path, command: str):
        self.folder, self._command = folder, command
        self._held: dict[str, int] = {}  # descriptors of locked files in the folder; Python opens them close-on-exec
        _owners.add(self)

    def take(self, to_rename: bool = False) -> None:
        """Owns the folder that is there. Raises SettingError, naming who has it, when another command does."""
        for file in (LOCK, READERS) if to_rename else (LOCK,):
            if file not in self._held:
                self._held[file] = self._lock(self.folder / file)
        self._sign(self._held[LOCK])

    @contextlib.contextmanager
    def begin(self, kept: Path | None) -> Iterator[Path]:
        """Yields an empty folder to fill; then it has its name, and is owned. The one that had the name before becomes
        `kept`. Raises SettingError where another command was first."""
        fresh = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        fresh.mkdir(parents=True)
        lock = None
        try:
            lock = self._lock(fresh / LOCK)
            self._sign(lock)
            yield fresh
            if kept is not None and self.folder.exists():
                self.take(to_rename=True)
                self.folder.rename(kept)
            try:
                fresh.rename(self.folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise self._refusal() from None
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            raise
        self.release()  # what has another name now
        self._held[LOCK] = lock

    def release(self) -> None:
        """Also in a child process: the lock stays with those who still have it open."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _lock(self, path: Path) -> int:
        try:
            return _soon_locked(path)
        except BlockingIOError:
            raise self._refusal(path.name) from None
        except FileNotFoundError:
            raise SettingError(SETTING, f"another command is just renaming {self.folder}", "Try again") from None
        except OSError as error:
            problem = f"{path} cannot be locked: {error.strerror}"
            cure = "Start in a folder that can be written, on a file system with locks"
            raise SettingError(SETTING, problem, cure) from None

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

    def _sign(self, descriptor: int) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "command": self._command}
        line = (json.dumps(who) + "\n").encode()
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))


def holder(folder: Path) -> str | None:
    """Which command has a run folder now, in words; None where none has. Where its lock may not be read, none."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment: see _soon_locked
        return None
    except BlockingIOError:
        pass
    except OSError:
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
