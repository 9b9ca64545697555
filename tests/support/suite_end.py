"""What a suite has left behind when it ends: processes, and with them their sockets, and weight files in /dev/shm.

Every process that descends from the suite has its mark among the variables with which it began; other suites and runs
of the machine have not, and are none of its business. Helpers that the suite's own process still has below it end with
that. A folder of weight files is named after its run, so it is the suite's where the run's folder is in its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from protocols import process_folder

MARK = "REDRAFT_SUITES"
LOOK_S = 0.2


def begin() -> str:
    """Marks what this process starts from now on, beside the marks of the suites in which it is itself."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = ":".join(filter(None, (os.environ.get(MARK), mark)))
    return mark


def left(mark: str, folder: Path | None, limit_s: float) -> list[str]:
    """What is left of the suite whose runs are under `folder`, in words; processes have until the limit to end."""
    deadline = time.monotonic() + limit_s
    while (outlived := list(_outlived(mark))) and time.monotonic() < deadline:
        psutil.wait_procs(outlived, LOOK_S)
    told = [_worded(process) for process in outlived]
    return told + [f"the weight files {path}" for path in _weights(folder)]


def _outlived(mark: str) -> Iterator[psutil.Process]:
    """The processes with the mark that are not below this one."""
    mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in mine and mark in process.environ().get(MARK, "").split(":"):
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def _worded(process: psutil.Process) -> str:
    listens, command = "", "?"
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())[:120]
        ports = [found.laddr.port for found in process.net_connections() if found.status == psutil.CONN_LISTEN]
        listens = f", which listens at port {', '.join(map(str, ports))}" if ports else ""
    return f"process {process.pid} ({command}){listens}"


def _weights(folder: Path | None) -> list[Path]:
    """The folders of weight files of the suite's runs whose owner has ended."""
    gone = {path: run for path, run in process_folder.left().items() if path.parent == process_folder.SHARED}
    if not gone or folder is None:
        return []
    runs = {label for file in folder.rglob("run.json") if (label := _label(file))}
    return [path for path, label in gone.items() if label in runs]


def _label(file: Path) -> str:
    """As the names of folders have it; "" where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return process_folder.label(json.loads(file.read_text())["id"])
    return ""
