"""What `benchmarks.loop` is made of: `signs` behind a slow environment, the environment for TRL, and whole runs.

The environment for TRL holds TRL and accelerate only: a `.pth` file lends it all packages of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.environments.base import Verdict
from actors.environments.signs import Signs
from benchmarks.methods import Meter
from redraft.models.make import trained

ROOT = Path(__file__).resolve().parents[1]
TRL = ("trl==1.16.*", "accelerate==1.15.*")
LONGEST_S = 20.0  # of one step: below environment.time_limit_s
POLL_S = 0.25
LIMIT_S = 3600.0  # of one side


class SlowSigns(Signs):
    """`signs` that takes its time, as a sandbox or a remote service does: Pareto of index 2, cut at LONGEST_S.

    At least half of the mean; one step in 100 takes 5 times the mean, one in 10,000 fifty times.
    """

    blocking = True

    def __init__(self, feedback: str = "binary", mean_s: float = 0.5):
        super().__init__(feedback)
        self._mean_s = mean_s

    def judge(self, task: dict, text: str) -> Verdict:
        time.sleep(min(LONGEST_S, self._mean_s / 2 / (1 - self.np_random.random()) ** 0.5))
        return super().judge(task, text)


class Failed(Exception):
    """A side that did not end well; its message holds the end of its output."""


class Watch:
    """CPU-seconds of a process tree over time, and when lines came to a file."""

    def __init__(self, file: Path):
        self._file, self._meter = file, None
        self._seen: list[tuple[float, float, int]] = []  # time, CPU-seconds until then, lines

    def look(self, pid: int) -> None:
        self._meter = self._meter or Meter(pid)
        self._meter.read()
        lines = self._file.read_bytes().count(b"\n") if self._file.exists() else 0
        self._seen.append((time.monotonic(), self._meter.seconds, lines))

    def cpu_s(self, wall_s: float) -> float:
        """Of the last `wall_s` until the last line came."""
        times, spent, _ = zip(*self._seen, strict=True)
        return float(np.diff(np.interp([self.ended - wall_s, self.ended], times, spent))[0])

    @property
    def ended(self) -> float:
        """When the last line came."""
        last = self._seen[-1][2]
        return next(at for at, _, lines in self._seen if lines == last)


def began_s(first: dict) -> float:
    """The controller's time at which the learner began to wait for its first batch, by its line of the first step.

    Packing is no part of it: it was done while the learner waited.
    """
    return first["time_s"] - sum(seconds for phase, seconds in first["seconds"].items() if phase != "pack")


@dataclass(frozen=True, slots=True)
class Bench:
    """One folder in which sides run, each in a process of its own; `model` is the start of all."""

    folder: Path
    model: Path
    device: str

    def torch(self, python: Path, module: str, recipe: str, changes: list[str], **more) -> dict:
        """What a side in one process says of itself: it is told its job by a file, its last line is JSON."""
        job = {
            "recipe": str(ROOT / "recipes" / f"{recipe}.yaml"),
            "changes": changes,
            "model": str(self.model),
            "device": self.device,
            "began": time.time(),
        } | more
        file = self.folder / "job.json"
        file.write_text(json.dumps(job))
        output = self._run([str(python), "-m", module, str(file)], self.folder / f"{module}.log")
        return json.loads(output.splitlines()[-1])

    def redraft(self, name: str, recipe: str, changes: list[str]) -> dict:
        """One run of `redraft train`: its seconds while it trained, and where the model lies that it came to.

        The clock begins when the learner begins to wait for its first batch, which is when actors get leases, and stops
        when the last step's weights are published. The controller's times of steps tell both. CPU-seconds are those of
        all processes of the run meanwhile.
        """
        changes = [*changes, f"model.path={self.model}", "model.make=null"]
        changes += ["evaluation.n=1", "evaluation.independent=1", "evaluation.greedy=false"]
        if self.device == "cuda":
            changes += ["actors.gpus=0.5", "learner.gpus=0.5", "actors.engine.gpu_memory=0.4"]
        folder, began = self.folder / "runs" / name, time.monotonic()
        watch = Watch(folder / "metrics.jsonl")
        file = str(ROOT / "recipes" / f"{recipe}.yaml")
        command = [sys.executable, "-m", "redraft", "train", file, *changes, "--run", name, "--again"]
        self._run(command, self.folder / f"{name}.log", watch.look)
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        wall_s = steps[-1]["time_s"] - began_s(steps[0])
        learner = {key: sum(step["seconds"].get(key, 0.0) for step in steps) for key in steps[0]["seconds"]}
        return {
            "wall_s": wall_s,
            "cpu_s": watch.cpu_s(wall_s),
            "start_s": watch.ended - wall_s - began,
            "learner_s": {key: round(seconds, 2) for key, seconds in learner.items()},
            "staleness": sum(step["staleness_mean"] for step in steps) / len(steps),
            "model": str(trained(folder, self.folder / ".cache" / "models")),
        }

    def _run(self, command: list[str], log: Path, look: Callable[[int], None] = lambda pid: None) -> str:
        """Runs to the end, with a look at it now and then; returns what it printed. Raises Failed."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        printed = log.with_suffix(".out")
        with log.open("w") as errors, printed.open("w") as output:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output, stderr=errors)
            until = time.monotonic() + LIMIT_S
            try:
                while process.poll() is None and time.monotonic() < until:
                    look(process.pid)
                    time.sleep(POLL_S)
            finally:
                if process.poll() is None:  # too late, or Ctrl-C
                    process.terminate()
                    process.wait(60)
        if process.returncode:
            raise Failed(
                f"{log.stem} ended with {process.returncode}:\n{(log.read_text() + printed.read_text())[-3000:]}"
            )
        return printed.read_text()


def trl_python(folder: Path) -> Path:
    """The Python of an environment that adds TRL to this one; it is made at first. Raises Failed."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"{', '.join(TRL)} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        Path(packages, "shared.pth").write_text(sysconfig.get_path("purelib"))
        if subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *TRL]).returncode:
            raise Failed(f"pip could not install {', '.join(TRL)}, without which part of the benchmark cannot run")
        (folder / "made").touch()
    return python
