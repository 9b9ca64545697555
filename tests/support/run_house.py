"""What tests of whole runs share: the command in a process of its own, and looks at what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from support import processes
from support.places import PYTHONPATH
from support.waiting import deadline_s, until

ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH}  # also for environments of the tests' own


def interruptible() -> None:
    """Ctrl-C reaches the command also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """`redraft ...` in a folder of its own, with a deadline for everything, in seconds on a quiet machine."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None):
        self.folder = folder
        self.log = folder / f"output-{len(list(folder.glob('output-*.txt')))}.txt"
        with open(self.log, "wb") as output:
            self.process = processes.start(
                [sys.executable, "-m", "redraft", *arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT if environment is None else environment,
                start_new_session=True,
                preexec_fn=interruptible,
            )

    def wait(self, limit_s: float) -> str:
        try:
            self.process.wait(deadline_s(limit_s))
        except subprocess.TimeoutExpired as late:
            processes.stop(self.process)
            raise AssertionError(f"still running after {late.timeout:.0f} s:\n{self.log.read_text()[-3000:]}") from None
        return self.log.read_text()

    def until(self, condition, limit_s: float):
        """Waits for a condition on the running command; returns what it found."""

        def looked():
            found = condition()
            assert found or self.process.poll() is None, f"ended too early:\n{self.log.read_text()[-3000:]}"
            return found

        return until(looked, lambda: f"the log ends with\n{self.log.read_text()[-3000:]}", limit_s)

    def lines(self, name: str, file: str) -> list[dict]:
        path = self.folder / "runs" / name / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self, name: str) -> list[int]:
        return [line["step"] for line in self.lines(name, "metrics.jsonl")]

    def summary(self, name: str) -> dict:
        return json.loads((self.folder / "runs" / name / "summary.json").read_text())

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def part(self, title: str) -> psutil.Process | None:
        """The worker process that Ray has named after a class, once it runs."""
        return next((child for child in self.children() if title in _command_of(child)), None)


def _command_of(process: psutil.Process) -> str:
    """Empty of one that has just ended, or that nobody has waited for yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def leftovers() -> list[Path]:
    """Weight files in /dev/shm whose owner is gone."""
    return [
        path for path in Path("/dev/shm").glob("redraft-*") if not psutil.pid_exists(int(path.name.rsplit("-")[-1]))
    ]
