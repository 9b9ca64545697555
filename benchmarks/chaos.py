"""The chaos hour: a run that learns, while something is killed, frozen, filled or intruded upon every other minute.

    python -m benchmarks.chaos [--quick] [--every SECONDS] [--seed N]

The run is the quickstart's (a tiny model, vLLM on a CPU, one actor, one rank, one replay service) under `redraft train
--restarts`, with a checkpoint every tenth step. For 60 minutes (6 with --quick) a fault is drawn every --every seconds
on average (default 120): each kind of benchmarks/chaos_parts.py comes once before any comes again. Nothing is
simulated; the small disk that is filled is a tmpfs, which needs root, and is left out elsewhere. Then the run is
stopped and its folder checked as by `redraft check`; a calm run does as many steps, and both are evaluated on the same
tasks.

    recovery           seconds from the fault until two steps were done after it, by the part that it hit
    steps anew         steps that were done again, from the checkpoint before
    effective          steps that the folder keeps at the calm run's median pace, beside the wall-clock time
    lost, twice        groups that were leased and are not known to replay; uses beyond those of the kept steps
    accuracy           of the last turn, with its standard error; calm beside it

The figures are of a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.chaos_parts import FAULTS, NAME, ROOT, Cost, Storm, disk, schedule
from protocols import cache as cache_folder
from redraft import records

FULL_S, QUICK_S = 3600.0, 360.0
EVERY_S = 120.0
HOLD_S = 10.0  # what is frozen, full or slow stays so
CALM = "calm"


def recipe() -> dict:
    """The quickstart's, with an environment that can be slowed and a checkpoint every tenth step."""
    found = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    found["environment"]["name"] = "benchmarks.chaos_environment:SlowSigns"
    found["actors"] |= {"silence_s": 5}
    found["learner"] |= {"checkpoint_every": 10}
    return found | {"steps": 1_000_000}


def hour(storm: Storm, seconds: float, every_s: float, faults: tuple[str, ...]) -> float:
    """Faults at random moments, for so long; the seconds that it took, until the last one was survived."""
    began = time.monotonic()
    plan = iter(schedule(storm.seed, 10_000, faults))
    while (left := seconds - (time.monotonic() - began)) > 0:
        time.sleep(min(left, storm.random.expovariate(1 / every_s)))  # it is how often, not a wait for anything
        if time.monotonic() - began < seconds:
            cost = storm.do(next(plan))
            print(f"{cost.fault}: {cost.seconds:.1f} s, {cost.steps} steps anew", file=sys.stderr, flush=True)
    return time.monotonic() - began


def checked(run: Path) -> dict[str, tuple[str, ...]]:
    """What `redraft check` finds broken, by check."""
    from redraft.check.folder import History
    from redraft.check.invariants import checked
    from redraft.recipe import load
    from redraft.run import find

    history = History(find(str(run)), load(run / "recipe.yaml"))
    return {found.name: found.problems for found in checked(history) if found.problems}


def accuracy(run: Path) -> tuple[float, float]:
    """Of the last turn in the newest evaluation, with its standard error."""
    figures = records.evaluations(run).lines[-1].summary.sampled.to_json()
    return figures["accuracy_by_turn"][-1], figures["se"]["accuracy_by_turn"][-1]


def pace(run: Path) -> float:
    """Median seconds of a step."""
    lines = records.steps(records.step_lines(run))
    return statistics.median(after.time_s - before.time_s for before, after in zip(lines, lines[1:], strict=False))


def summary(storm: Storm, wall_s: float, calm: Path) -> dict:
    """All figures."""
    by_fault: dict[str, list[Cost]] = defaultdict(list)
    for cost in storm.costs:
        by_fault[cost.fault].append(cost)
    steps, broken = len(records.steps(records.step_lines(storm.run))), checked(storm.run)
    pace_s = pace(calm)
    (found, error), (usual, usual_error) = accuracy(storm.run), accuracy(calm)
    return {
        "minutes": round(wall_s / 60, 1),
        "faults": {
            fault: {
                "times": len(costs),
                "recovery_median_s": round(statistics.median(cost.seconds for cost in costs), 1),
                "recovery_most_s": round(max(cost.seconds for cost in costs), 1),
                "steps_anew": sum(cost.steps for cost in costs),
            }
            for fault, costs in sorted(by_fault.items())
        },
        "steps": steps,
        "steps_anew": sum(cost.steps for cost in storm.costs),
        "effective": round(steps * pace_s / wall_s, 3),
        "calm_step_s": round(pace_s, 3),
        "broken": {name: list(problems) for name, problems in broken.items()},
        "accuracy": {"chaos": found, "chaos_se": error, "calm": usual, "calm_se": usual_error},
    }


def show(line: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "times", "steps again after, median s", "most s", "steps done anew", box=None)
    for fault, found in line["faults"].items():
        table.add_row(fault, *map(str, found.values()))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    found = line["accuracy"]
    console.print(
        f"{line['minutes']} min, {line['steps']} steps kept, {line['steps_anew']} done anew, effective "
        f"{line['effective']:.0%}; broken promises: {', '.join(line['broken']) or 'none'}; accuracy "
        f"{found['chaos']:.3f} +- {found['chaos_se']:.3f}, calm {found['calm']:.3f} +- {found['calm_se']:.3f}",
        soft_wrap=True,
    )


def calm_run(storm: Storm, steps: int) -> Path:
    """As many steps without a fault; its folder."""
    called = storm.command("train", "storm.yaml", f"steps={steps}", "--run", CALM)
    assert called.returncode == 0, called.stderr[-2000:]
    return storm.run.with_name(CALM)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 minutes in place of 60")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between faults, on average")
    parser.add_argument("--seed", type=int, default=0, help="of when what is done")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        with disk(place) as mounted:
            faults = tuple(fault for fault in FAULTS if mounted or fault != "full disk")
            cache = {cache_folder.VARIABLE: str(cache_folder.folder(""))}  # the base model is made once
            storm = Storm(place, recipe(), chosen.seed, hold_s=HOLD_S, variables=cache)
            try:
                storm.start()
                wall_s = hour(storm, QUICK_S if chosen.quick else FULL_S, chosen.every, faults)
                storm.stop()
                evaluated = storm.command("eval", NAME)
                assert evaluated.returncode == 0, evaluated.stderr[-2000:]
                line = summary(storm, wall_s, calm_run(storm, len(records.steps(records.step_lines(storm.run)))))
            finally:
                storm.close()
    show(line)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "seed": chosen.seed, "every_s": chosen.every}
    print(json.dumps({"benchmark": "chaos"} | line | machine))
    return 1 if line["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
