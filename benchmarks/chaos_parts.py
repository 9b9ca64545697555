"""A supervised run, and what is done to it: kills, stops, a full disk, a cut network, torn files, a slow environment,
second commands.

`Storm` starts `redraft train --restarts` in a folder of its own and does one fault after another to it; each ends when
the run makes steps again. What a fault cost is told: seconds until then, and steps that were done anew.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from benchmarks.chaos_network import Network
from redraft import records

ROOT = Path(__file__).resolve().parents[1]
NAME = "storm"
RESTARTS = 5  # in a row, without a checkpoint between
DISK_BYTES = 512 << 20
LEFT_BYTES = 100 << 10  # of a disk that is filled: it is full in the midst of a write
STEPS = 2  # after a fault, by which the run goes on
POLL_S = 0.05
TORN = b'{"step": 7, "rew'
PARTS = {
    "actor": "ray::ActorPart",
    "replay": "ray::ReplayPart",
    "rank": "ray::RankPart",
    "controller": "ray::Controller",
    "command": f" --run {NAME}",
}
"""What the process of each part is called: by Ray, or by who starts the command."""


class StuckError(AssertionError):
    """The run did not go on within the limit."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a fault cost: seconds until the run made steps again, and steps that were done anew."""

    fault: str
    seconds: float
    steps: int


@dataclass
class Storm:
    """A run under `place`. `limit_s` bounds every wait; `hold_s` is how long what is stopped, slow, full or cut off
    stays so."""

    place: Path
    recipe: dict
    seed: int = 0
    limit_s: float = 300.0
    hold_s: float = 3.0
    variables: dict[str, str] = field(default_factory=dict)
    network: Network | None = None
    """Where the run lives on machines of its own: the command is on `head`, actors are on `node`."""
    costs: list[Cost] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.run = self.place / "runs" / NAME
        self._slow, self._said = self.place / "slow", self.place / "said.log"
        (self.place / "storm.yaml").write_text(yaml.safe_dump(self.recipe | {"name": NAME}))
        paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(ROOT), *paths)),
            "CHAOS_SLOW": str(self._slow),
        }
        self.environment |= self.variables
        inside = () if self.network is None else self.network.inside("head")
        self._redraft = [*inside, sys.executable, "-m", "redraft"]
        self.process: subprocess.Popen | None = None

    # The command.

    def start(self) -> None:
        """Starts the run, or goes on with it; returns when it makes steps."""
        arguments = ["train", "storm.yaml", "--run", NAME, "--resume-if-begun", "--restarts", str(RESTARTS)]
        with open(self._said, "ab") as said:
            self.process = subprocess.Popen(
                [*self._redraft, *arguments],
                cwd=self.place,
                env=self.environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        before = len(self.written())
        self.wait(lambda: len(self.written()) >= before + STEPS, "the first steps")

    def command(self, *arguments: str, limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """A command beside the run, or after it."""
        return subprocess.run(
            [*self._redraft, *arguments],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=limit_s or self.limit_s,
        )

    def stop(self) -> None:
        """Has the run end as SIGINT does it, with a checkpoint."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                raise StuckError(f"it did not stop within {self.limit_s:g} s: {self.said()}") from None

    def close(self) -> None:
        """Ends all that is left of it, by pid."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()
        self._slow.unlink(missing_ok=True)

    def said(self) -> str:
        """The end of what the command said."""
        return self._said.read_text(errors="replace")[-3000:]

    def family(self) -> list[psutil.Process]:
        """The supervisor, the command and all that they started, also what their death left to others: they, or who
        started them, have the storm's own variable in their environment."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("CHAOS_SLOW") == str(self._slow):
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(found.values())

    def parts(self, name: str) -> list[psutil.Process]:
        """The processes of a kind of part, one of PARTS."""
        title, found = PARTS[name], []
        for process in self.family():
            with suppress(psutil.Error):
                words = process.cmdline()
                supervises = "--restarts" in words  # it is asked for by the words of the command, too
                if title in " ".join(words) and not supervises and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    # What it has done.

    def written(self) -> list[int]:
        """The steps of metrics.jsonl, in the order in which they were written."""
        return [line.get("step", 0) for line in records.lines(self.run / "metrics.jsonl")]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + self.limit_s
        while not condition():
            if self.process is None or self.process.poll() is not None:
                raise StuckError(f"{what}: the command has ended: {self.said()}")
            if time.monotonic() > until:
                raise StuckError(f"{what}: not within {self.limit_s:g} s: {self.said()}")
            time.sleep(POLL_S)

    def steps(self) -> None:
        """Waits for steps after now."""
        before = len(self.written())
        self.wait(lambda: len(self.written()) >= before + STEPS, "steps")

    # What is done to it.

    def do(self, fault: str) -> Cost:
        """One fault, one of FAULTS; returns when the run goes on."""
        before, began = self.written(), time.monotonic()
        FAULTS[fault](self)
        self.steps()
        seconds = time.monotonic() - began
        after = self.written()[len(before) :]
        cost = Cost(fault, seconds, sum(step <= max(before, default=0) for step in after))
        self.costs.append(cost)
        return cost

    def kill(self, name: str) -> None:
        """SIGKILL; returns when another process has its place."""
        self.wait(lambda: self.parts(name), f"a process of {name}")
        there = self.parts(name)
        victim = self.random.choice(there)
        victim.kill()
        self.wait(lambda: len(set(self.parts(name)) - {victim}) >= len(there), f"another {name}")

    def freeze(self, name: str) -> None:
        """SIGSTOP for a while, then SIGCONT: what was replaced meanwhile wakes up as well."""
        self.wait(lambda: self.parts(name), f"a process of {name}")
        victim = self.random.choice(self.parts(name))
        with suppress(psutil.NoSuchProcess):
            victim.suspend()
            time.sleep(self.hold_s)  # it is what is done, not a wait for anything
            victim.resume()

    def fill(self) -> None:
        """The disk of the run folder has no room for a while."""
        ballast = self.run.with_name("ballast")
        with suppress(OSError), open(ballast, "wb") as out:
            left = shutil.disk_usage(ballast.parent).free - LEFT_BYTES
            while left > 0:
                left -= out.write(bytes(min(left, 1 << 20)))
        time.sleep(self.hold_s)
        ballast.unlink()

    def cut(self) -> None:
        """Nothing passes between the command's machine and the actor's for a while."""
        assert self.network is not None
        with self.network.without(("head", "node")):
            time.sleep(self.hold_s)

    def tear(self) -> None:
        """All parts and whoever supervises them die amid what they write; the same command goes on."""
        assert self.process is not None
        self.process.kill()
        for name in ("command", *PARTS):
            for process in self.parts(name):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        for file in ("metrics.jsonl", "evaluations.jsonl"):
            with open(self.run / file, "ab") as out:
                out.write(TORN)
        (self.run / "checkpoints" / ".step-999999.tmp" / "model").mkdir(parents=True)
        self.start()

    def slow(self) -> None:
        """The environment answers slowly for a while."""
        self._slow.touch()
        time.sleep(self.hold_s)
        self._slow.unlink()

    def intrude(self) -> None:
        """Second commands, which are refused in a line before they write."""
        kept = [(self.run / file).read_bytes() for file in ("run.json", "recipe.yaml", "checkpoints/incarnation")]
        for arguments in (("train", "storm.yaml", "--run", NAME, "--resume"), ("check", NAME)):
            said = self.command(*arguments)
            assert said.returncode == 2 and "process" in said.stderr.splitlines()[-1], said
        again = [(self.run / file).read_bytes() for file in ("run.json", "recipe.yaml", "checkpoints/incarnation")]
        assert kept == again, "a second command has written"


FAULTS: dict[str, Callable[[Storm], None]] = {
    "kill actor": lambda storm: storm.kill("actor"),
    "kill replay": lambda storm: storm.kill("replay"),
    "kill rank": lambda storm: storm.kill("rank"),
    "kill controller": lambda storm: storm.kill("controller"),
    "kill command": lambda storm: storm.kill("command"),
    "freeze actor": lambda storm: storm.freeze("actor"),
    "freeze replay": lambda storm: storm.freeze("replay"),
    "freeze rank": lambda storm: storm.freeze("rank"),
    "freeze controller": lambda storm: storm.freeze("controller"),
    "freeze command": lambda storm: storm.freeze("command"),
    "full disk": Storm.fill,
    "cut network": Storm.cut,
    "torn files": Storm.tear,
    "slow environment": Storm.slow,
    "second commands": Storm.intrude,
}


def schedule(seed: int, count: int, faults: tuple[str, ...]) -> list[str]:
    """`count` faults, drawn by the seed: each kind comes once before any comes again."""
    drawn, dice = [], random.Random(seed)
    while len(drawn) < count:
        drawn += dice.sample(faults, len(faults))
    return drawn[:count]


def possible(storm: Storm, mounted: bool) -> tuple[str, ...]:
    """The faults that can be done here."""
    lacking = {"full disk": not mounted, "cut network": storm.network is None}
    return tuple(fault for fault in FAULTS if not lacking.get(fault, False))


@contextmanager
def disk(place: Path) -> Iterator[bool]:
    """A small disk at `place`/runs, where this user may mount one: whether there is one."""
    runs = place / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "redraft-chaos", str(runs)]
    mounted = shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(runs)], check=True)
