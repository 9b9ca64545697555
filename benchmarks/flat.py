"""Whether a long run stays flat: 10,000 steps, in which nothing may grow but what says that it does.

    python -m benchmarks.flat [--quick]

Real: the command `redraft train` in a process of its own, with its controller, replay, actors, learner, weights and
trackers as in any run; the learner trains and publishes at each step and writes checkpoints.
Simulated: engines are scripted and answer at once, so that a step takes no longer than the parts between engine and
optimizer do; the model that is trained is as small as one can be, a batch is 4 groups of one answer. Actors prove no
weights: log-probs of a script follow no model, so the tolerance of the probe is set beyond reach.

From outside, the processes' memory and the files' sizes are looked at twice a second. What a run needs to get going is
left out: the first tenth of its steps for memory and files, the first two percent for speed. Growth of memory is from
the second tenth of the steps to the last, medians of each; `anonymous` is the part of it that is no mapped file and no
shared memory: replay maps its spool, and all that use Ray its object store. Slowdown is steps/s of the first tenth
over those of the last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = {
    "name": "flat",
    "model": {
        "dtype": "float32",
        "make": {"hidden": 32, "layers": 1, "heads": 1, "feed_forward": 32, "max_length": 64},
    },
    "environment": {"name": "signs"},
    "rollout": {"name": "attempt"},
    "sampling": {"max_tokens": 4},
    "actors": {
        "cpus": 0,
        "episodes": 64,
        "probe_tolerance": 1000.0,
        "engine": {"name": "scripted", "max_length": 64},
    },
    "learner": {
        "batch_groups": 4,
        "max_staleness": 64,
        "row_tokens": 64,
        "micro_tokens": 256,
        "attention": "eager",
        "credit": {"name": "raw"},
        "objective": {"name": "awr"},
        "record": {"max_bytes": 1 << 20},
    },
    "evaluation": {"n": 1, "independent": 1, "greedy": False},
}
PARTS = {  # the beginning of a process's title, and what it is called here
    "ray::Controller": "controller",
    "ray::ReplayPart": "replay",
    "ray::RankPart": "learner",
    "ray::ActorPart": "actor",
    "ray::NodeFiles": "weight files",
    "gcs_server": "ray's gcs",
    "raylet": "raylet",
    "redraft": "command",
}
KINDS = ("metrics.jsonl", "spool", "tensorboard", "turns", "checkpoints", "logs", "/dev/shm", "ray's logs")
SESSION = "--session-dir="  # of Ray, on some of its processes' command lines
LOOK_S = 0.5
LIMIT_S = 3600.0
TENTHS = 10
MB = 1e6


@dataclass(frozen=True, slots=True)
class Look:
    """The run at one moment: steps done, memory by part, all of it and the anonymous part, files by kind, in bytes."""

    step: int
    rss: Counter[str]
    anonymous: Counter[str]
    files: Counter[str]


class Watched:
    """The command, and what is seen of it from outside."""

    def __init__(self, folder: Path, steps: int):
        import yaml

        (folder / "flat.yaml").write_text(yaml.safe_dump(RECIPE | {"steps": steps}))
        self.folder, self._run = folder, folder / "runs" / "flat"
        self._output = folder / "output.txt"
        command = [sys.executable, "-m", "redraft", "train", "flat.yaml"]
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def looks(self) -> list[Look]:
        """Looks until the run ends. Raises RuntimeError when it fails or takes too long."""
        found, until = [], time.monotonic() + LIMIT_S
        try:
            while self._process.poll() is None:
                if time.monotonic() > until:
                    raise RuntimeError(f"the run did not end within {LIMIT_S:.0f} s")
                if (step := self._step()) is not None:
                    found.append(self._look(step))
                time.sleep(LOOK_S)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.returncode:
            raise RuntimeError(f"the run failed: {self._output.read_text()[-2000:]}")
        return found

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self._run / "metrics.jsonl").read_text().splitlines()]

    def _step(self) -> int | None:
        """Of the last whole line of metrics.jsonl."""
        path = self._run / "metrics.jsonl"
        if not path.exists():
            return None
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            whole = file.read().split(b"\n")[-2:-1]
        return json.loads(whole[0])["step"] if whole and whole[0] else None

    def _look(self, step: int) -> Look:
        import psutil

        rss, anonymous, session = Counter(), Counter(), None
        own = psutil.Process(self._process.pid)
        for process in [own, *own.children(recursive=True)]:
            try:
                title = process.cmdline()
                held, shared = process.memory_info().rss, process.memory_info().shared
            except (psutil.Error, IndexError):
                continue
            part = "command" if process == own else _part(title)
            rss[part] += held
            anonymous[part] += held - shared
            session = session or next(
                (word.split("=", 1)[1] for word in title if word.startswith("--session-dir=")), None
            )
        return Look(step, rss, anonymous, self._files(session))

    def _files(self, session: str | None) -> Counter[str]:
        places = {kind: [self._run / kind] for kind in KINDS}
        run_id = json.loads((self._run / "run.json").read_text())["id"]
        places["/dev/shm"] = list(Path("/dev/shm").glob(f"redraft-{run_id[:12]}-*"))
        places["ray's logs"] = [Path(session) / "logs"] if session else []
        return Counter({kind: sum(map(_bytes, paths)) for kind, paths in places.items()})


def _part(title: list[str]) -> str:
    name = Path(title[0]).name if title else ""
    return next((part for start, part in PARTS.items() if name.startswith(start)), "ray's other processes")


def _bytes(path: Path) -> int:
    """On the disk: a spool is a sparse file."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        try:
            total += file.stat().st_blocks * 512
        except OSError:  # it has gone meanwhile
            continue
    return total


def summary(looks: list[Look], lines: list[dict], steps: int) -> dict:
    """The figures of the last line: megabytes, steps/s, bytes."""
    tenth = steps // TENTHS
    early = [look for look in looks if tenth <= look.step < 2 * tenth]
    late = [look for look in looks if steps - tenth <= look.step < steps]
    begun = max(1, steps // 50)
    at = {line["step"]: line["time_s"] for line in lines}
    rates = (tenth - begun) / (at[tenth] - at[begun]), tenth / (at[steps] - at[steps - tenth])
    rss, anonymous, files = ((_medians(early, of), _medians(late, of)) for of in ("rss", "anonymous", "files"))
    return {
        "rss_growth_mb": _grown_mb(*rss),
        "anonymous_growth_mb": _grown_mb(*anonymous),
        "rss_mb": {part: round(held / MB, 1) for part, held in rss[1].items()},
        "slowdown": round(rates[0] / rates[1], 3),
        "steps_per_s": [round(rate, 2) for rate in rates],
        "bytes": {kind: {"early": files[0][kind], "late": files[1][kind]} for kind in KINDS},
        "steps": steps,
    }


def _medians(looks: list[Look], of: str) -> Counter[str]:
    """By part or kind of file, over these looks."""
    counted = [getattr(look, of) for look in looks]
    names = set.intersection(*map(set, counted))
    return Counter({name: int(statistics.median(each[name] for each in counted)) for name in names})


def _grown_mb(early: Counter[str], late: Counter[str]) -> dict[str, float]:
    return {name: round((held - early[name]) / MB, 1) for name, held in sorted(late.items())}


def show(line: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    memory = Table(box=None)
    for head in ("process", "MB at the end", "grown by MB", "of it anonymous"):
        memory.add_column(head, justify="left" if head == "process" else "right")
    for part, grown in line["rss_growth_mb"].items():
        memory.add_row(
            part, f"{line['rss_mb'][part]:.0f}", f"{grown:+.1f}", f"{line['anonymous_growth_mb'][part]:+.1f}"
        )
    console.print(memory)
    between = line["steps"] * (TENTHS - 2) / TENTHS  # from the middle of the second tenth to that of the last
    files = Table(box=None)
    for head in ("files", "KB early", "KB late", "bytes a step between"):
        files.add_column(head, justify="left" if head == "files" else "right")
    for kind, sizes in line["bytes"].items():
        grown = (sizes["late"] - sizes["early"]) / between
        files.add_row(kind, f"{sizes['early'] / 1e3:,.0f}", f"{sizes['late'] / 1e3:,.0f}", f"{grown:,.0f}")
    console.print(files)
    first, last = line["steps_per_s"]
    console.print(f"steps/s: {first} in the first tenth, {last} in the last; slowdown {line['slowdown']}")


def run(folder: Path, steps: int) -> dict:
    watched = Watched(folder, steps)
    looks = watched.looks()
    return summary(looks, watched.lines(), steps)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat", description=__doc__.splitlines()[0])
    limits = "1,000 steps, under 3 minutes on two cores; else 10,000, under 10"
    parser.add_argument("--quick", action="store_true", help=limits)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
        line = run(Path(folder), 1_000 if chosen.quick else 10_000)
    show(line)
    print(json.dumps(line | {"quick": chosen.quick, "cores": os.cpu_count(), "python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
