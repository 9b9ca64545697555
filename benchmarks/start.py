"""How long `redraft train recipes/quickstart.yaml` takes to its first step, cold, warm and resumed, part by part.

    python -m benchmarks.start [--quick] [--device cpu|cuda]

Each run is the command of a user in a process of its own, in a folder of its own; the clock runs from its start until
metrics.jsonl holds the first line. Nothing is simulated. The recipe is the quickstart's, with one step, and of the
evaluation before training one task is left, whose time is a part of its own.

    cold with model   page caches dropped, no base model: it is made first. Once
    cold              page caches dropped; the base model is there
    warm              the same, with the files in the page cache
    resume            --resume of a run that has a checkpoint, warm, for one more step

The last three run in rounds, in alternating order; figures are medians. Dropping page caches needs root: where it is
not permitted, "cold" is warm, and the table and `caches_dropped` say so. What other processes of the machine map at
that moment stays in memory, so let nothing else of this kind run.

Parts follow one another and add up to the whole: each ends with the event that the table names. Learner and engine
start at once; when each was up is told beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
ONE_TASK = ("evaluation.n=1", "evaluation.independent=1", "evaluation.greedy=false")
DEVICES = {
    "cpu": (),
    "cuda": ("actors.gpus=0.5", "learner.gpus=0.5", "actors.engine.gpu_memory=0.3"),  # one GPU carries both
}
CACHES = Path("/proc/sys/vm/drop_caches")
POLL_S = 0.02
LIMIT_S = 600.0
TARGET_S = 45.0
LOGGED = re.compile(r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w \S+ \S+: (?P<said>.*)")
PARTS = {  # name: the event that ends it
    "command_and_ray": "the command's checks are done and Ray is up",
    "controller": "its process is up",
    "learner_and_engine": "both are up",
    "weights": "the actor has loaded and proved the first weights",
    "evaluation": "one task is played",
    "first_step": "the first step is in metrics.jsonl",
}


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds from the command to its first step, the parts of that, and when some processes were up."""

    seconds: float
    parts: dict[str, float]
    learner_s: float
    engine_s: float


class Run:
    """`redraft train` in a folder, watched from outside: by its files, and by the times in its logs."""

    def __init__(self, folder: Path, name: str, *arguments: str):
        self._folder, self._name = folder, name
        self._run = folder / "runs" / name
        self._lines = len(self._read("metrics.jsonl").splitlines())  # of a run that is resumed
        self._output = folder / f"{name}.txt"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "redraft", "train", str(RECIPE), "--run", name, *ONE_TASK, *arguments]
        self._began = time.time()
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def measure(self) -> Start:
        """Waits for the run's end. Raises RuntimeError when it fails or takes too long."""
        try:
            ray = self._until(lambda: self._written("run.json") and json.loads(self._read("run.json"))["ray"], "Ray")
            end = self._until(lambda: len(self._read("metrics.jsonl").splitlines()) > self._lines, "the first step")
            if self._process.wait(LIMIT_S):
                raise RuntimeError(f"{self._name} failed: {self._said()}")
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        learner, engine = self._logged("controller", "started"), self._logged("actor-0", "the engine is up")
        ends = {
            "command_and_ray": ray,
            "controller": self._logged("controller", "starting: tasks"),
            "learner_and_engine": max(learner, engine),
            "weights": self._logged("controller", "evaluating", "training"),  # a resumed run was evaluated before
            "evaluation": self._logged("controller", "training"),
            "first_step": end,
        }
        starts = [0.0, *ends.values()]
        parts = {name: at - before for (name, at), before in zip(ends.items(), starts, strict=False)}
        return Start(end, parts, learner, engine)

    def _until(self, condition, what: str) -> float:
        """Seconds from the command's start until the condition holds."""
        while not condition():
            passed = time.time() - self._began
            if passed > LIMIT_S or self._process.poll() is not None:
                raise RuntimeError(f"{self._name}: {what} did not come: {self._said()}")
            time.sleep(POLL_S)
        return time.time() - self._began

    def _written(self, file: str) -> bool:
        """Whether this command, and no earlier one, wrote it."""
        path = self._run / file
        return path.exists() and path.stat().st_mtime > self._began

    def _logged(self, part: str, *beginnings: str) -> float:
        """Seconds from the command's start until this part logged a line with one of these beginnings."""
        for found in LOGGED.finditer(self._read(f"logs/{part}.log")):
            passed = datetime.strptime(found["at"], "%Y-%m-%d %H:%M:%S,%f").timestamp() - self._began
            if passed > 0 and found["said"].startswith(beginnings):
                return passed
        raise RuntimeError(f"{self._name}: {part} logged no {beginnings[0]!r}")

    def _read(self, file: str) -> str:
        path = self._run / file
        return path.read_text() if path.exists() else ""

    def _said(self) -> str:
        return self._output.read_text()[-2000:]


def drop_caches() -> bool:
    """Whether the page caches could be dropped."""
    os.sync()
    try:
        CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def starts(folder: Path, rounds: int, overrides: tuple[str, ...]) -> tuple[dict[str, list[Start]], bool]:
    """All starts by side, and whether page caches were dropped for those that are cold."""
    found: dict[str, list[Start]] = {"cold_with_model": [], "cold": [], "warm": [], "resume": []}
    dropped = True

    def start(side: str, number: int) -> None:
        nonlocal dropped
        if side.startswith("cold"):
            dropped &= drop_caches()
        name = "resume" if side == "resume" else f"{side}-{number}"
        steps = (f"steps={2 + number}", "--resume") if side == "resume" else ("steps=1",)
        found[side].append(Run(folder, name, *overrides, *steps).measure())
        print(f"{side}: {found[side][-1].seconds:.1f} s", file=sys.stderr, flush=True)

    start("cold_with_model", 0)
    Run(folder, "resume", *overrides, "steps=1").measure()
    for number in range(rounds):
        for side in ("cold", "warm", "resume")[:: 1 if number % 2 == 0 else -1]:
            start(side, number)
    return found, dropped


def summary(found: dict[str, list[Start]], dropped: bool) -> dict:
    """The figures of the last line: medians in seconds."""
    line: dict = {f"{side}_s": round(_median(start.seconds for start in runs), 2) for side, runs in found.items()}
    line["parts"] = {
        side: {name: round(_median(start.parts[name] for start in runs), 2) for name in PARTS}
        | {"learner_up": round(_median(start.learner_s for start in runs), 2)}
        | {"engine_up": round(_median(start.engine_s for start in runs), 2)}
        for side, runs in found.items()
    }
    return line | {"caches_dropped": dropped, "rounds": len(found["cold"])}


def show(line: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    cold = "" if line["caches_dropped"] else " (page caches not dropped: not permitted)"
    table = Table(box=None, title=f"seconds to the first step{cold}; aim: cold {TARGET_S:.0f}")
    for head in ("part", *(side.replace("_", " ") for side in line["parts"]), "ends when"):
        table.add_column(head, justify="left" if head in ("part", "ends when") else "right")
    sides = line["parts"].values()
    for name, ends in PARTS.items():
        table.add_row(name.replace("_", " "), *(f"{parts[name]:.1f}" for parts in sides), ends)
    table.add_row("whole", *(f"{line[f'{side}_s']:.1f}" for side in line["parts"]), "")
    for name in ("learner_up", "engine_up"):
        table.add_row(name.replace("_", " "), *(f"{parts[name]:.1f}" for parts in sides), "(from the command's start)")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _median(values) -> float:
    return statistics.median(values)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, under 8 minutes on two cores; else three")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where learner and engine compute")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
        line = summary(*starts(Path(folder), 1 if chosen.quick else 3, DEVICES[chosen.device]))
    show(line)
    machine = {"quick": chosen.quick, "device": chosen.device, "cores": os.cpu_count()}
    print(json.dumps(line | machine | {"python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
