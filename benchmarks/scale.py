"""How far one controller and one replay service carry: 1 to 1,024 simulated actors of 5 turns/s each, in one run.

    python -m benchmarks.scale [--quick] [--sizes 1,64,1024] [--slower 10]

The run begins with one actor and is scaled up as `redraft scale` does it: 1, 4, 16, 64, 128, 256, 1,024. At each size,
when all actors are ready, the clock runs for a window. At the end the run gets a second shard of replay, as by `redraft
replay grow`, and is measured once more.

Real: the controller with its loop, lease book, admission and fleet (`redraft.control`), each exchange with an actor
as a Ray call to another process; the actors themselves (`actors.actor`: leases, weights with digest and probe, a
metrics port each) with a producer each; the wire; replay in a process of its own with its spool; the client that
claims, checks, decodes and commits batches.
Simulated: engines are scripted and wait (0.22 s to the first token, 10 ms a token, up to 9 tokens), environments wait
(0.1 s); an actor plays two groups at once, so 5 turns/s are what it can do. All actors live in two processes, since 256
do not fit on one machine. The learner trains nothing; its weights are 64 bytes, a new version every 5 s. Turns are
small (32 tokens of prompt): see `benchmarks.replay` for large ones.

The simulated actors take most of a machine at some size, which says nothing of the system. So "own cores" are those
of all but their hosts, and "per core" is turns/s for each of them beside that at the first size of 64 or more: where it
falls, the system itself needs more for each turn. With --slower 10 all that takes time in an actor and in the learner
takes ten times as long: an actor plays half a turn/s, so that more actors fit on a machine, and a version comes every
50 s.

A turn counts when replay has stored it. "of linear" is beside as many times the rate of an actor at the first size. CPU
is in cores; controller, replay and each host of actors are one Python process, for which 1.0 is the end. An exchange is
a report of an actor and the orders before it. A lease's time is from when it is given until its end is known; "learner
waits" is the share of its time in which it has no batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from protocols.errors import RedraftError
from protocols.reports import RunStatus

# Ray reads these when it is imported, here and in the processes that it starts; see `redraft.control.cluster`.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1, 4, 16, 64, 128, 256, 1024)
BASE = 64  # actors from which on cores are compared: fixed costs count for little there
FILES = 65536  # that a process may have open: each producer has sockets of its own
TURNS = 5  # of a group
TURN_S = 0.44  # of one, as engine and environment wait
RECIPE = {
    "name": "scale",
    "steps": 999_999,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "signs"},
    "rollout": {
        "name": "benchmarks.scale_parts:play",
        "turns": TURNS,
        "options": {"environment_s": 0.1, "publish_s": 5.0},
    },
    "sampling": {"max_tokens": 9},
    "actors": {
        "count": 1,
        "groups": 2,
        "cpus": 0,
        "engine": {"name": "scripted", "first_token_s": 0.22, "token_s": 0.01, "max_length": 128},
    },
    "learner": {  # admission holds nobody back
        "batch_groups": 16,
        "max_staleness": 512,
        "row_tokens": 256,
        "credit": {"name": "turnwise", "baseline": "batch"},
    },
    "evaluation": {"n": 1, "independent": 1, "greedy": False},
}
PARTS = {
    "ray::CountingController": "controller",
    "ray::ReplayPart": "replay",
    "ray::Host": "hosts",
    "ray::Consumer": "consumer",
    "ray::NodeFiles": "weights",
}
ENOUGH = 0.9  # of linear


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds before the clock starts, of the window, and that a change of the fleet may take."""

    warm_s: float
    window_s: float
    limit_s: float = 180.0

    def slowed(self, times: float) -> Plan:
        """The same where all waits are so many times as long: a window holds a whole group at least."""
        group_s = TURNS * TURN_S * times
        return replace(self, warm_s=max(self.warm_s, group_s / 2), window_s=max(self.window_s, 1.1 * group_s))


QUICK, FULL = Plan(2.0, 8.0), Plan(5.0, 40.0)


class Bench:
    """One run, measured at sizes. `controller` is its handle."""

    def __init__(self, controller, plan: Plan):
        self._controller, self._plan, self.rows = controller, plan, []

    def measure(self, actors: int, shards: int) -> dict:
        """Figures of one window, as a row of the table."""
        self._ask("scale", actors)
        self._until(lambda status: len(status.actors) == actors and _ready(status), f"{actors} actors")
        time.sleep(self._plan.warm_s)
        before, cpu_before = self._ask("counts"), _cpu_s()
        time.sleep(self._plan.window_s)
        after, cpu_after = self._ask("counts"), _cpu_s()
        seconds = after["at"] - before["at"]
        cores = {part: (spent - cpu_before.get(part, 0.0)) / seconds for part, spent in cpu_after.items()}
        rate = (after["rows"] - before["rows"]) * TURNS / (TURNS + 1) / seconds  # a row in six is the end of a group
        first = self.rows[0]["turns_per_s"] / self.rows[0]["actors"] if self.rows else rate / actors
        own = sum(cores.values()) - cores.get("hosts", 0.0)
        base = next((row for row in self.rows if row["actors"] >= BASE), {"turns_per_s": rate, "own_cores": own})
        held_s = sorted(after["held_s"]) or [math.nan]
        exchanges = after["exchanges"] - before["exchanges"]
        self.rows.append(
            {
                "actors": actors,
                "shards": shards,
                "turns_per_s": rate,
                "of_linear": rate / (first * actors),
                "own_cores": own,
                "per_core": rate / own / (base["turns_per_s"] / base["own_cores"]),
                "cores": cores,
                "own_ms": own / rate * 1e3,
                "exchanges_per_s": exchanges / seconds,
                "exchange_ms": after["exchange_s"] * 1e3,
                "learner_waits": 1 - (after["busy_s"] - before["busy_s"]) / seconds,
                "lease_p50_s": held_s[len(held_s) // 2],
                "lease_p99_s": held_s[int(0.99 * len(held_s))],
            }
        )
        return self.rows[-1]

    def grow(self) -> None:
        self._ask("add_shard")

    def begin(self) -> None:
        """Returns when the run trains."""
        self._until(lambda status: status.state == "training", "training")

    def _ask(self, method: str, *arguments):
        import ray

        return ray.get(getattr(self._controller, method).remote(*arguments), timeout=self._plan.limit_s)

    def _until(self, condition, what: str) -> None:
        deadline = time.monotonic() + self._plan.limit_s
        while not condition(status := self._ask("status")):
            if time.monotonic() > deadline or status.state == "failed":
                raise RedraftError(f"{what} did not come: {status.state} {status.detail}")
            time.sleep(0.2)


def _ready(status: RunStatus) -> bool:
    return all(actor.state == "ready" and actor.version is not None for actor in status.actors)


def _cpu_s() -> Counter[str]:
    """CPU seconds by part; Ray's own processes and what else this run started are `ray`."""
    import psutil

    spent: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            title, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        part = next((part for start, part in PARTS.items() if title.startswith(start)), "ray")
        spent[part] += times.user + times.system
    return spent


def saturated(rows: list[dict]) -> str:
    """What came to its end first: the fullest resource at the smallest size below ENOUGH of linear."""
    from benchmarks.scale_parts import HOSTS

    short = next((row for row in rows if row["of_linear"] < ENOUGH), None)
    if short is None:
        return f"nothing up to {rows[-1]['actors']} actors"
    cores = short["cores"]
    used = {name: cores.get(name, 0.0) for name in ("controller", "consumer")}
    used |= {"replay": cores.get("replay", 0.0) / short["shards"], "hosts of simulated actors": cores["hosts"] / HOSTS}
    used["all cores of the machine"] = sum(cores.values()) / (os.cpu_count() or 1)
    name = max(used, key=used.get)
    return f"{name} ({used[name]:.0%} used at {short['actors']} actors)"


def show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    heads = ("actors", "shards", "turns/s", "of linear", "controller", "replay", "hosts", "all of Ray", "own ms a turn")
    for head in (*heads, "per core", "exchanges/s", "learner waits", "lease p50/p99 s"):
        table.add_column(head, justify="right")
    for row in rows:
        cores = [f"{row['cores'].get(part, 0.0):.2f}" for part in ("controller", "replay", "hosts", "ray")]
        table.add_row(
            str(row["actors"]),
            str(row["shards"]),
            f"{row['turns_per_s']:,.0f}",
            f"{row['of_linear']:.2f}",
            *cores,
            f"{row['own_ms']:.2f}",
            f"{row['per_core']:.2f}" if row["actors"] >= BASE else "",
            f"{row['exchanges_per_s']:.0f}",
            f"{row['learner_waits']:.2f}",
            f"{row['lease_p50_s']:.2f} / {row['lease_p99_s']:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def slowed(recipe: dict, times: float) -> dict:
    """The recipe with engines, environments and a learner that take so many times as long."""
    slow = copy.deepcopy(recipe)
    for key in slow["rollout"]["options"]:
        slow["rollout"]["options"][key] *= times
    for key in ("first_token_s", "token_s"):
        slow["actors"]["engine"][key] *= times
    return slow


def run(plan: Plan, sizes: tuple[int, ...], times: float, folder: str) -> list[dict]:
    import ray

    from benchmarks.scale_parts import CountingController
    from redraft import run as runs
    from redraft.models import make as models
    from redraft.owner import Owner
    from redraft.recipe import build

    os.chdir(folder)  # the run folder lies here
    os.environ["PYTHONPATH"] = str(ROOT)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    recipe = build(slowed(RECIPE, times))
    model = models.prepare(recipe.model, recipe.environment, Path("models"), lambda line: None)
    made = runs.create(recipe, str(model), Owner(runs.RUNS / recipe.name, "benchmark"))
    ray.init(namespace="redraft", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        part = ray.remote(CountingController).options(num_cpus=0, max_concurrency=16)
        controller = part.remote(made, recipe)
        controller.run.remote()
        bench = Bench(controller, plan.slowed(times))
        bench.begin()
        for actors in sizes:
            _say(bench.measure(actors, shards=1))
        bench.grow()
        _say(bench.measure(sizes[-1], shards=2))
        return bench.rows
    finally:
        ray.shutdown()


def _say(row: dict) -> None:
    shown = f"{row['actors']} actors, {row['shards']} shards: {row['turns_per_s']:.0f} turns/s"
    print(f"{shown}, {row['of_linear']:.2f} of linear", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 3 minutes on two idle cores; else under 8")
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=SIZES)
    parser.add_argument("--slower", type=float, default=1.0, help="times as long a wait: more actors on one machine")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
        rows = run(QUICK if chosen.quick else FULL, chosen.sizes, chosen.slower, folder)
        os.chdir(ROOT)
    show(rows)
    of_linear = {row["actors"]: row["of_linear"] for row in rows if row["shards"] == 1}
    summary = {
        "linearity": {actors: round(share, 3) for actors, share in of_linear.items()},
        "saturated_first": saturated(rows),
        "quick": chosen.quick,
        "slower": chosen.slower,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rows": [_rounded(row) for row in rows],
    }
    print(f"turns/s for each core of its own, at {rows[-1]['actors']} actors: {rows[-2]['per_core']:.2f} of {BASE}'s")
    print(f"first to be full: {summary['saturated_first']}")
    print(json.dumps(summary))
    return 0


def _rounded(row: dict) -> dict:
    cores = {part: round(spent, 3) for part, spent in row["cores"].items()}
    return {key: round(value, 3) for key, value in row.items() if key != "cores"} | {"cores": cores}


if __name__ == "__main__":
    sys.exit(main())
