"""Processes of this machine, known by more than a number, which another process may get when one has ended.

A worker of Ray can hang for ever in its exit, with all its memory. So a command knows the processes below it, waits for
them to go, and ends those that do not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

log = logging.getLogger("redraft.processes")
LOOK_S = 0.1
KILLED_S = 2.0  # for one that was killed to be gone
ZOMBIE = "Z"  # it has ended, and its parent has not looked


def identity(pid: int) -> str:
    """What tells a process from all others, on all hosts and at all times; "" where this one sees none."""
    try:
        state, *_, began = _stat(pid)[:20]
        return "" if state == ZOMBIE else f"{numbers()} {pid} {began}"
    except (OSError, ValueError):
        return ""


def numbers() -> str:
    """Among whom a process number means one process: a start of the machine, and in it a container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot + os.readlink("/proc/self/ns/pid")


def children(pid: int) -> set[int]:
    """Of this process, as they are now."""
    return {child for child, parent in _parents().items() if parent == pid}


def below(roots: Iterable[int]) -> dict[int, str]:
    """These processes and all that they have started, by number, with their identities."""
    parents = _parents()
    found, waiting = set[int](), list(roots)
    while waiting:
        found.add(one := waiting.pop())
        waiting += [child for child, parent in parents.items() if parent == one and child not in found]
    return {pid: known for pid in sorted(found) if (known := identity(pid))}


def end(known: Mapping[int, str], limit_s: float) -> list[str]:
    """Waits until these have ended; kills those that have not within the limit, says so, and returns who they were."""
    deadline = time.monotonic() + limit_s
    while left := [pid for pid, one in known.items() if identity(pid) == one]:
        if time.monotonic() >= deadline:
            break
        time.sleep(LOOK_S)
    killed = []
    for pid in left:
        told = f"process {pid} ({title(pid)})"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            killed.append(told)
    deadline = time.monotonic() + KILLED_S
    while any(identity(pid) == known[pid] for pid in left) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    if killed:
        log.warning("%s had not ended after %.0f s, and was killed", ", ".join(killed), limit_s)
    return killed


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found[int(entry)] = int(_stat(int(entry))[1])
    return found


def began(pid: int) -> int:
    """When, in clock ticks since the machine's start; 0 where there is none."""
    try:
        return int(_stat(pid)[19])
    except (OSError, ValueError, IndexError):
        return 0


def variable(pid: int, name: str) -> str | None:
    """What this variable was in the environment that a process began with; None where it was not set, or cannot be
    read."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((one.partition("=")[2] for one in found if one.startswith(f"{name}=")), None)


def title(pid: int) -> str:
    """As `ps` shows it, its first word or what Ray calls it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return Path(words[0].split()[0]).name if words[0].strip() else "?"
