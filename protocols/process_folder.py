"""Folders of one process, which others can tell from those of the living and remove when it was killed.

    redraft-RUN-NUMBERS-PID

RUN is the begin of the run's id, for people. NUMBERS says among whom PID is that process: a container has processes of
its own, which others that share its folders do not see, and must not take for dead.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

PREFIX = "redraft-"
SHARED = Path("/dev/shm")
NAME = re.compile(rf"{PREFIX}(?P<run>\w*)-(?P<numbers>\w+)-(?P<pid>\d+)")


def made(place: Path, run_id: str) -> Path:
    """A new folder of this process in `place`, which its user alone may enter. What an earlier process of the same
    number left there is removed. Raises OSError."""
    folder = place / _name(run_id)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def temporary(run_id: str) -> Path:
    """The same, from now on for all temporary files of this process and of those that it starts: libraries leave some
    behind when they are killed. Where it was made before, it is that one."""
    before = Path(tempfile.gettempdir())
    if before.name == _name(run_id):
        return before
    folder = made(before, run_id)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def _name(run_id: str) -> str:
    return f"{PREFIX}{label(run_id)}-{_numbers()}-{os.getpid()}"


def label(run_id: str) -> str:
    """How the names of a run's folders say whose they are."""
    return "".join(filter(str.isalnum, run_id))[:6]


def left() -> dict[Path, str]:
    """The folders of processes that are gone, and the labels of their runs."""
    numbers, found = _numbers(), {}
    for place in {SHARED, Path(tempfile.gettempdir())}:
        for folder in place.glob(f"{PREFIX}*"):
            name = NAME.fullmatch(folder.name)
            if name and name["numbers"] == numbers and _gone(int(name["pid"])):
                found[folder] = name["run"]
    return found


def sweep() -> list[Path]:
    """Removes the folders of processes that are gone; returns them."""
    gone = list(left())
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def _numbers() -> str:
    """The kernel's number of the namespace in which this process has its own."""
    return f"{os.stat('/proc/self/ns/pid').st_ino:x}"


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
