"""All figures of the hot paths, one benchmark after another, beside their targets.

    python -m benchmarks.all [--quick] [--device cpu|cuda]

Each is a process of its own; what it prints goes to the terminal as it comes, but for its last line, which is JSON. One
that fails, or hangs for longer than it may, is reported and the others go on; the exit status is then 1. A target that
is missed is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loop import base_model

ROOT = Path(__file__).resolve().parents[1]
QUICK_S, QUICK_LOOP_S, FULL_S = 340.0, 900.0, 5400.0  # that one benchmark may take: 49 minutes in all with --quick
GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """One figure of a benchmark: where it lies in its JSON line, and what it should be at least or at most."""

    benchmark: str
    keys: tuple[str, ...]
    limit: float | Callable[[dict], float]
    least: bool = True

    @property
    def name(self) -> str:
        return " ".join(self.keys)

    def seen(self, line: dict) -> float:
        for key in self.keys:
            line = line[key]
        return line

    def wanted(self, line: dict) -> float:
        return self.limit(line) if callable(self.limit) else self.limit

    def met(self, line: dict) -> bool:
        return self.seen(line) >= self.wanted(line) if self.least else self.seen(line) <= self.wanted(line)


TARGETS = (
    Target("generation", ("offline_ratio",), 0.8),
    Target("async_gain", ("ideal_ratio",), 0.85),
    Target("async_gain", ("heavy_tail_speedup",), 2.0),
    Target("loop", ("wall_over_plain",), 1.25, least=False),
    Target("loop", ("wall_over_trl_single",), 1.5, least=False),
    Target("loop", ("speedup_over_trl",), 3.0),
    Target("weights", ("pause_ms", "0.4M"), 5.0, least=False),
    Target("weights", ("pause_ms", "50M"), 60.0, least=False),
    Target("weights", ("pause_ms", "300M"), lambda line: 4 * line["memcpy_ms"]["300M"], least=False),
    Target("learner", ("one_rank_ratio",), 0.85),
    Target("learner", ("padding_share",), 0.05, least=False),
    Target("trees", ("prefill_saving",), 5.0),
    Target("trees", ("occupancy",), 0.8),
    Target("start", ("cold_s",), 45.0, least=False),
)
NAMES = tuple(dict.fromkeys(target.benchmark for target in TARGETS))


def run(name: str, arguments: list[str], limit_s: float) -> dict:
    """The JSON line of one benchmark; all that it prints before goes to the terminal. Raises RuntimeError saying why
    there is none."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    stops = [
        threading.Timer(limit_s, process.send_signal, (signal.SIGINT,)),  # which lets it end what it has started
        threading.Timer(limit_s + GRACE_S, os.killpg, (process.pid, signal.SIGKILL)),
    ]
    began, last = time.monotonic(), ""
    try:
        for stop in stops:
            stop.start()
        for text in process.stdout:
            print(last, end="", flush=True)
            last = text
        code = process.wait()
    finally:
        for stop in stops:
            stop.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if not last.startswith("{"):
        print(last, end="", flush=True)
    if time.monotonic() - began >= limit_s:
        raise RuntimeError(f"it did not end within {limit_s:.0f} s")
    if code:
        raise RuntimeError(f"it ended with exit status {code}")
    try:
        return json.loads(last)
    except ValueError:
        raise RuntimeError(f"its last line is no JSON: {last.strip()[:80]!r}") from None


def limit_of(name: str, quick: bool) -> float:
    """Seconds that this benchmark may take."""
    if not quick:
        return FULL_S
    return QUICK_LOOP_S if name == "loop" else QUICK_S


def run_all(device: str, quick: bool) -> tuple[dict[str, dict], dict[str, str]]:
    """Lines by benchmark, and why others have none."""
    arguments = ["--device", device, *["--quick"] * quick]
    lines, failed = {}, {}
    for number, name in enumerate(NAMES, 1):
        print(f"[{number}/{len(NAMES)}] {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            line = run(name, arguments, limit_of(name, quick))
            for target in [target for target in TARGETS if target.benchmark == name]:
                target.met(line)
            lines[name] = line
        except RuntimeError as error:
            failed[name] = str(error)
        except (KeyError, TypeError) as error:
            failed[name] = f"its line lacks a figure: {error!r}"
        said = failed.get(name, "done")
        print(f"[{number}/{len(NAMES)}] {name}: {said}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return lines, failed


def show(lines: dict[str, dict], failed: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for head in ("benchmark", "figure", "seen", "target", ""):
        table.add_column(head, justify="right" if head in ("seen", "target") else "left")
    for target in TARGETS:
        line = lines.get(target.benchmark)
        if line is None:
            table.add_row(target.benchmark, target.name, "-", "", failed[target.benchmark])
            continue
        bound = f"{'>=' if target.least else '<='} {target.wanted(line):g}"
        verdict = "met" if target.met(line) else "[bold]missed[/bold]"
        table.add_row(target.benchmark, target.name, f"{target.seen(line):g}", bound, verdict)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 minutes on two cores; else hours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models compute")
    chosen = parser.parse_args()
    base_model()  # which several of them train: the first use makes it, in a minute that is none of theirs
    lines, failed = run_all(chosen.device, chosen.quick)
    show(lines, failed)
    print(json.dumps(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
