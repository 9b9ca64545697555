"""The chaos hour: a run that learns, while something is killed, frozen, filled, cut off or intruded upon.

    python -m benchmarks.chaos [--quick] [--every SECONDS] [--seed N]

The run is the quickstart's (a tiny model, vLLM on a CPU, one actor, one rank, one replay service) under `redraft train
--restarts`, with a checkpoint every tenth step, and a process that stands by for the actor and one for the rank. For 60
minutes a fault is drawn every --every seconds on average (120; 15 with --quick, which takes 6 minutes, so that as many
kinds come as there is time for). Each kind of benchmarks/chaos_parts.py comes once before any comes again; which came
is told. Nothing is simulated. As root the run lives on two machines, which are network namespaces: the actor is on one,
all else on the other, and the link is cut; and its disk is a tmpfs, which is filled. Elsewhere these two are left out.
The engine is no process of its own on a CPU: who kills the actor kills it.

Then the run is stopped and its folder checked as by `redraft check`; a calm run does as many steps, and both are
evaluated on the same tasks.

    recovery           seconds from the fault until another process had the place and two steps were done after it
    steps anew         steps that were done again, from the checkpoint before
    effective          steps that the folder keeps at the calm run's pace, beside the wall-clock time
    lost by a fault    seconds of the rest, by the number of faults; and what share is effective with one every 120 s
    kinds              which faults came, which had no time, and which cannot be done here
    lost, twice        groups that were leased and are not known to replay; groups used more often than they may be
    accuracy           of the last turn, with its standard error; calm beside it

The figures are of a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks import chaos_network
from benchmarks.chaos_parts import FAULTS, NAME, ROOT, Cost, Storm, disk, possible, schedule
from protocols import cache as cache_folder
from redraft import records

FULL_S, QUICK_S = 3600.0, 360.0
EVERY_S, QUICK_EVERY_S = 120.0, 15.0
HOLD_S = 10.0  # what is frozen, full or cut off stays so
LEFT_OUT = ("slow environment",)  # the quickstart's cannot be slowed
CALM = "calm"
LIMIT_S, CALM_S = 900.0, 7200.0  # the most that a fault, and the calm run, may take


def recipe(machines: bool = False) -> dict:
    """The quickstart's, with a checkpoint every tenth step; with `machines` its actor is on the node of
    benchmarks/chaos_network.py."""
    found = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    found["actors"] |= {"silence_s": 5, "standby": True} | (
        {"resources": {chaos_network.WORK: 0.1}} if machines else {}
    )
    found["learner"] |= {"checkpoint_every": 10, "standby": True}
    return found | {"steps": 999_999}


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


def promises(run: Path) -> dict:
    """How many groups were lost and how many were used too often; and what `redraft check` finds broken, by check."""
    from redraft.check.folder import History, decided
    from redraft.check.invariants import checked
    from redraft.recipe import load
    from redraft.run import find

    history = History(find(str(run)), load(run / "recipe.yaml"))
    leased = history.state.get("cursor", {}).get("position", 0)
    known = {kept.group for kept in history.groups if decided(kept)}
    most = history.recipe.replay.max_uses
    return {
        "groups_lost": max(0, leased - len(known)),
        "groups_twice": sum(len(kept.uses) > most for kept in history.groups),
        "broken": {found.name: list(found.problems) for found in checked(history) if found.problems},
    }


def accuracy(run: Path) -> tuple[float, float]:
    """Of the last turn in the newest evaluation, with its standard error."""
    figures = records.evaluations(run).lines[-1].summary.sampled.to_json()
    return figures["accuracy_by_turn"][-1], figures["se"]["accuracy_by_turn"][-1]


def pace(run: Path) -> float:
    """Seconds of a step, in the mean: with what its checkpoints took, as the run with faults has them too."""
    lines = records.steps(records.step_lines(run))
    return (lines[-1].time_s - lines[0].time_s) / (len(lines) - 1)


def recovery(costs: Sequence[Cost]) -> dict:
    """Of one kind of fault; the 99th percentile is the nearest rank: the longest where there are fewer than 100."""
    seconds = sorted(cost.seconds for cost in costs)
    return {
        "times": len(costs),
        "recovery_p50_s": round(statistics.median(seconds), 1),
        "recovery_p99_s": round(seconds[math.ceil(0.99 * len(seconds)) - 1], 1),
        "steps_anew": sum(cost.steps for cost in costs),
    }


def kept(run: Path) -> int:
    """How many steps the folder keeps."""
    return len(records.steps(records.step_lines(run)))


def kinds(came: Sequence[str], faults: Sequence[str]) -> dict[str, list[str]]:
    """Of all faults of this run: which came, which could have and did not, and which cannot be done here."""
    return {
        "came": sorted(set(came)),
        "no_time": sorted(set(faults) - set(came)),
        "not_here": sorted(set(FAULTS) - set(faults) - set(LEFT_OUT)),
    }


def summary(storm: Storm, wall_s: float, calm: Path, faults: Sequence[str], before: int = 0) -> dict:
    """All figures; `faults` are those that could be done, `before` steps were kept when the first could come."""
    by_fault: dict[str, list[Cost]] = defaultdict(list)
    for cost in storm.costs:
        by_fault[cost.fault].append(cost)
    steps, pace_s = kept(storm.run) - before, pace(calm)
    lost_s = max(0.0, wall_s - steps * pace_s) / max(len(storm.costs), 1)
    (found, error), (usual, usual_error) = accuracy(storm.run), accuracy(calm)
    return {
        "minutes": round(wall_s / 60, 1),
        "faults": {fault: recovery(costs) for fault, costs in sorted(by_fault.items())},
        "kinds": kinds(list(by_fault), faults),
        "steps": steps,
        "steps_anew": sum(cost.steps for cost in storm.costs),
        "effective": round(steps * pace_s / wall_s, 3),
        "lost_by_a_fault_s": round(lost_s, 1),
        f"effective_at_{EVERY_S:g}_s": round(max(0.0, 1 - lost_s / EVERY_S), 3),
        "calm_step_s": round(pace_s, 3),
        **promises(storm.run),
        "accuracy": {"chaos": found, "chaos_se": error, "calm": usual, "calm_se": usual_error},
    }


def show(line: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "times", "two steps after, p50 s", "p99 s", "steps done anew", box=None)
    for fault, found in line["faults"].items():
        table.add_row(fault, *map(str, found.values()))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(*(f"{why}: {', '.join(found) or 'none'};" for why, found in line["kinds"].items()), soft_wrap=True)
    found = line["accuracy"]
    console.print(
        f"{line['minutes']} min, {line['steps']} steps kept, {line['steps_anew']} done anew; {line['groups_lost']} "
        f"groups lost, {line['groups_twice']} used twice, broken promises: {', '.join(line['broken']) or 'none'}; "
        f"effective {line['effective']:.0%}, {line['lost_by_a_fault_s']} s lost by a fault; accuracy "
        f"{found['chaos']:.3f} +- {found['chaos_se']:.3f}, calm {found['calm']:.3f} +- {found['calm_se']:.3f}",
        soft_wrap=True,
    )


@contextmanager
def begun(place: Path, seed: int) -> Iterator[tuple[Storm, tuple[str, ...]]]:
    """The run, which makes steps, and the faults that can be done to it here."""
    cache = {cache_folder.VARIABLE: str(cache_folder.folder(""))}  # the base model is made once
    why = chaos_network.lacking()
    with disk(place) as mounted:
        machines = None if why else chaos_network.Machines(place)
        variables = cache | (machines.variables if machines else {})
        network = machines.network if machines else None
        storm = Storm(
            place,
            recipe(machines is not None),
            seed,
            limit_s=LIMIT_S,
            hold_s=HOLD_S,
            variables=variables,
            network=network,
        )
        try:
            if machines:
                machines.begin(storm.environment)
            else:
                print(f"no network is cut: {why}", file=sys.stderr)
            storm.start()
            yield storm, tuple(fault for fault in possible(storm, mounted) if fault not in LEFT_OUT)
        finally:
            storm.close()
            if machines:
                machines.close()


def evaluated(storm: Storm) -> Path:
    """Stops the run and evaluates it; a calm run of as many steps, evaluated as well: its folder."""
    storm.stop()
    called = storm.command("eval", NAME)
    assert called.returncode == 0, called.stderr[-2000:]
    arguments = ("train", "storm.yaml", f"steps={kept(storm.run)}", "--run", CALM)
    called = storm.command(*arguments, limit_s=CALM_S)
    assert called.returncode == 0, called.stderr[-2000:]
    return storm.run.with_name(CALM)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 minutes in place of 60")
    parser.add_argument("--every", type=float, help="seconds between faults, on average")
    parser.add_argument("--seed", type=int, default=0, help="of when what is done")
    chosen = parser.parse_args(arguments)
    seconds, every_s = (QUICK_S, QUICK_EVERY_S) if chosen.quick else (FULL_S, EVERY_S)
    every_s = chosen.every or every_s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing of it is left
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c", ignore_cleanup_errors=True) as folder:
        with begun(Path(folder), chosen.seed) as (storm, faults):
            before = kept(storm.run)
            wall_s = hour(storm, seconds, every_s, faults)
            line = summary(storm, wall_s, evaluated(storm), faults, before)
    show(line)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "seed": chosen.seed, "every_s": every_s}
    print(json.dumps({"benchmark": "chaos"} | line | machine))
    return 1 if line["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
