"""What many actors cost the controller, and what it costs them: its loop alone, on a machine that could not play for so
many.

    python -m benchmarks.scale_controller [--sizes 64,1024] [--slower 10]

Real: the controller's rounds (`redraft.control`: exchange, fleet, lease book), each exchange as a Ray call to another
process, and the actors' side of it (`actors.actor`). Simulated: a play only waits, `benchmarks.scale`'s 2.2 s times
`--slower`, and so does the learner between two versions (5 s); two processes hold all actors. There is no replay, no
engine and no weights.

CPU is that of whole processes, and of the loop's own thread. "per core" is turns/s for each core of the controller
beside those at the first size. A whole run with replay and a learner: `benchmarks.scale`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Ray reads these when it is imported, here and in the processes that it starts; see `redraft.control.cluster`.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from actors.actor import Actor
from actors.tasks import TaskOrder
from benchmarks.scale import TURN_S, TURNS
from protocols.checksum import Sums
from protocols.turns import Lease
from protocols.weights import Probe, WeightRef
from redraft import recipe as recipes
from redraft.control.exchange import TICK_S, Announced, Exchange
from redraft.control.fleet import Fleet
from redraft.control.leases import LeaseBook
from redraft.control.workers import worker_environment

ROOT = Path(__file__).resolve().parents[1]
HOSTS = 2
PUBLISH_S = 5.0
ROOM = 10**6  # for groups: admission holds nobody back


class Waiting(Actor):
    """An actor whose plays and loads only take time."""

    def __init__(self, name: str, play_s: float):
        spec: Any = SimpleNamespace(version=None)
        super().__init__(spec, name, None)
        self._play_s = play_s

    async def _build(self) -> Any:
        return SimpleNamespace(engine=SimpleNamespace(running=0, error=None), producer=SimpleNamespace(alive=True))

    async def _play_group(self, lease: Lease) -> str:
        await asyncio.sleep(self._play_s)
        self._playing -= 1
        self._report.closed.append((lease.group, lease.fencing_token, None))
        self._tell()
        return ""

    async def _update(self, trial: WeightRef | None) -> None:
        await self._started.wait()
        while self._announced:
            self._report.version = self._announced.pop().version
            self._tell()
        self._updating = False


class Host:
    """A process with many of them."""

    def __init__(self, play_s: float):
        self._play_s, self._actors = play_s, {}

    async def apply(self, name: str, func, **named):
        if name not in self._actors:
            self._actors[name] = Waiting(name, self._play_s)
        return await self._actors[name].apply(func, **named)

    async def cpu_s(self) -> float:
        return time.process_time()


class Counted(Exchange):
    """Counts exchanges and the groups that ended; looks at nothing that is not there."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.exchanges = self.groups = 0

    def _take(self, number, report) -> None:
        self.exchanges += 1
        self.groups += len(report.closed)
        super()._take(number, report)

    def _room(self, admission) -> int:
        return ROOM


@dataclass(frozen=True, slots=True)
class Spent:
    """So far, in seconds of CPU and of the clock."""

    at: float
    controller_s: float
    thread_s: float
    hosts_s: float
    exchanges: int
    groups: int
    rounds: int


class Bench:
    """A controller's loop with hosts of actors."""

    def __init__(self, times: float):
        part = ray.remote(Host).options(num_cpus=0, max_concurrency=4000, runtime_env=worker_environment(1))
        self._hosts = [part.remote(TURNS * TURN_S * times) for _ in range(HOSTS)]
        recipe = recipes.load(ROOT / "recipes" / "quickstart.yaml", ["actors.count=1", "actors.groups=2"])
        self.fleet = Fleet(self._seat, recipe.actors, 600.0, lambda number, why: sys.exit(f"actor {number}: {why}"))
        order = TaskOrder([{"id": str(number)} for number in range(1000)], seed=0)
        book = LeaseBook(order, "run", 0, 0, 0, lambda ids: (), lambda group: "")
        nothing = SimpleNamespace(look=lambda *_: 0, newest={})
        parts: Any = SimpleNamespace(
            fleet=self.fleet, ranks=[nothing], files=nothing, copier=nothing, shards=nothing, lost=deque(), book=book
        )
        status: Any = SimpleNamespace(**dict.fromkeys(("gpus", "fleet", "played", "event"), lambda *_, **__: None))
        self._announced, self._versions, self._publish_s = Announced(), count(1), PUBLISH_S * times
        self._published = -self._publish_s
        self._exchange = Counted(parts, recipe, status, self._announced)
        self._rounds = 0

    def _seat(self, name: str) -> Any:
        host = self._hosts[int(name.rpartition("-")[2]) % HOSTS]
        call = SimpleNamespace(remote=lambda **named: host.apply.remote(name, **named))
        return SimpleNamespace(_actor_id=host._actor_id, apply=call)

    def serve(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if time.monotonic() - self._published > self._publish_s:
                self._published = time.monotonic()
                self._announced.newest = WeightRef(next(self._versions), 1, Sums(), (), Probe((), (), 1.0))
            self._exchange.tick(SimpleNamespace())  # pyright: ignore[reportArgumentType]  only handed on
            self._rounds += 1
            time.sleep(TICK_S)

    def spent(self) -> Spent:
        hosts_s = sum(ray.get([host.cpu_s.remote() for host in self._hosts]))
        exchange, own = self._exchange, (time.process_time(), time.thread_time())
        return Spent(time.monotonic(), *own, hosts_s, exchange.exchanges, exchange.groups, self._rounds)

    def measure(self, actors: int, warm_s: float, window_s: float) -> dict:
        """Figures of one window, once so many actors are ready."""
        self._exchange._size = actors
        while len(self.fleet.ready()) < actors:
            self.serve(0.2)
        self.serve(warm_s)
        before = self.spent()
        self.serve(window_s)
        after = self.spent()
        seconds, turns = after.at - before.at, (after.groups - before.groups) * TURNS
        return {
            "actors": actors,
            "turns_per_s": turns / seconds,
            "exchanges_per_s": (after.exchanges - before.exchanges) / seconds,
            "rounds_per_s": (after.rounds - before.rounds) / seconds,
            "controller_cores": (after.controller_s - before.controller_s) / seconds,
            "thread_cores": (after.thread_s - before.thread_s) / seconds,
            "hosts_cores": (after.hosts_s - before.hosts_s) / seconds,
            "controller_ms_a_turn": (after.controller_s - before.controller_s) / turns * 1e3,
            "exchange_ms": self._exchange._pace.exchange_s * 1e3,
            "wait_s": self._exchange._pace.wait_s(actors),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_controller", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=(64, 1024))
    parser.add_argument("--slower", type=float, default=10.0, help="times as long a play, and between two versions")
    chosen = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(namespace="redraft", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        bench, play_s = Bench(chosen.slower), TURNS * TURN_S * chosen.slower
        rows = [bench.measure(actors, play_s / 2, max(8.0, 1.1 * play_s)) for actors in chosen.sizes]
    finally:
        ray.shutdown()
    first, last = rows[0], rows[-1]
    for row in rows:
        print(", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    per_core = first["controller_ms_a_turn"] / last["controller_ms_a_turn"]
    print(f"turns/s for each core of the controller, at {last['actors']} beside {first['actors']}: {per_core:.2f}")
    rounded = [{key: round(value, 3) for key, value in row.items()} for row in rows]
    print(
        json.dumps({"per_core": round(per_core, 3), "slower": chosen.slower, "cores": os.cpu_count(), "rows": rounded})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
