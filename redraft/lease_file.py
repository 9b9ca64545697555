"""Ownership of a run folder on file systems without locks: a file that its owner touches again and again.

    lease    {"token": ..., "process": ...}, made by link(2), which exists once however many try

Who wants the folder watches the file for SILENT_S by its own clock: one that was not touched has no owner any more. So
no two clocks are compared, as hosts of a network file system would have to. On the owner's own host a process that has
ended is known at once. An owner that finds another's lease (it was frozen, or cut off from its disk, for longer) ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
import threading
import time
from pathlib import Path

from protocols.errors import FAULT
from redraft.processes import identity, numbers

NAME = "lease"
BEAT_S, SILENT_S = 5.0, 30.0  # NFS shows another host a change of a file after 3 s, by default
LOOK_S = 0.2


class LeaseFile:
    """This process's lease of `folder`, from `take` to `close`."""

    def __init__(self, folder: Path, token: str):
        self.folder, self._token = folder, token
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @classmethod
    def take(cls, folder: Path) -> LeaseFile:
        """Raises BlockingIOError where another process has the folder, after SILENT_S at most."""
        token = secrets.token_hex(8)
        aside = folder / f".{NAME}.{token}"
        aside.write_text(json.dumps({"token": token, "process": identity(os.getpid())}))
        try:
            while not _linked(aside, folder / NAME):
                _remove_if_silent(folder / NAME, token)
        finally:
            aside.unlink()
        return cls(folder, token)

    def close(self) -> None:
        """Also in a child process: then the file is left to the parent."""
        self._closed.set()
        with contextlib.suppress(OSError):
            if _read(self.folder / NAME) == (self._token, identity(os.getpid())):
                (self.folder / NAME).unlink()

    def moved(self, folder: Path) -> None:
        """The folder was renamed to that."""
        self.folder = folder

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            file = self.folder / NAME
            try:
                if _read(file)[0] not in ("", self._token) and not self._closed.is_set():
                    print(f"redraft: {self.folder} was taken by another command; this one ends", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(FAULT)
                os.utime(file)
            except OSError:  # the disk is away, or the folder is just renamed
                continue


def held(folder: Path) -> bool:
    """Whether a process has the folder, as far as one look can tell."""
    try:
        _, owner = _read(folder / NAME)
        beaten = (folder / NAME).stat().st_mtime
    except OSError:
        return False
    return not _has_ended(owner) and _now_at(folder) - beaten < 2 * SILENT_S


def _now_at(folder: Path) -> float:
    """By the clock of the file system, as the beats are; by that of this machine where nothing may be written there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _linked(aside: Path, file: Path) -> bool:
    try:
        os.link(aside, file)
    except FileExistsError:
        return False
    return True


def _remove_if_silent(file: Path, token: str) -> None:
    """Raises BlockingIOError where the owner of the lease lives."""
    deadline = time.monotonic() + SILENT_S
    try:
        seen, first = _read(file), file.stat().st_mtime_ns
        while not _has_ended(seen[1]) and time.monotonic() < deadline:
            if _lives_here(seen[1]) or file.stat().st_mtime_ns != first or _read(file) != seen:
                raise BlockingIOError
            time.sleep(LOOK_S)
        dead = file.with_name(f".{NAME}.{token}.dead")
        file.rename(dead)
        taken = _read(dead)
        if taken != seen and not _linked(dead, file):  # another was faster: it has its lease back
            taken = seen
        dead.unlink()
    except FileNotFoundError:  # its owner has just given it back, or another has removed it
        return
    if taken != seen:
        raise BlockingIOError


def _read(file: Path) -> tuple[str, str]:
    """Token and process of a lease. Raises OSError."""
    try:
        said = json.loads(file.read_text())
        return str(said["token"]), str(said["process"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _lives_here(owner: str) -> bool:
    pid = _pid_here(owner)
    return pid is not None and identity(pid) == owner


def _has_ended(owner: str) -> bool:
    pid = _pid_here(owner)
    return pid is not None and identity(pid) != owner


def _pid_here(owner: str) -> int | None:
    """Its number, where it is one that this process can see."""
    among, *rest = owner.split() or [""]
    return int(rest[0]) if rest and among == numbers() else None
