"""Replay beside its limit and its alternatives: the same 9 KB turns through each, in one run, interleaved.

    python -m benchmarks.replay [--quick] [--only SIDE]...

A side is a system with 1 or 4 producer processes and one consumer process that takes batches of 256 turns:

    raw           ZeroMQ PUSH and PULL over ipc, a frame a turn: the limit; nothing is kept, checked or acknowledged
    raw-joined    the same, 32 turns in a frame
    bytes bytes-joined    the same two without the work: always the same bytes, which nobody encodes or decodes
    ipc tcp curve power   this service in a process of its own, over ipc, tcp, tcp with CURVE (these survive kill -9),
                  and over ipc with durability power
    ray-actor     a list in a Ray actor; a call a turn, at most 64 of a producer under way
    ray-queue     ray.util.queue.Queue, put and get_nowait_batch

All but `bytes` do the same work: producers make and encode turns, the consumer decodes them. The clock starts when the
consumer has had a third of a slice and stops when it has all. CPU is that of all processes of a side in that time, for
Ray of its whole process tree (GCS, raylet and agents too). Memory is the sum of their peaks; pages that processes share
count in each. A side runs once a round on a slice of work that takes it a
second or a few (faster systems get more turns). Figures are medians over rounds, ratios are taken within rounds. Ray
is started once: its idle processes take some 4 % of a core from the sides that run after it.

Paced sides: one producer at 400 turns/s; latency is from the add of a group's close row until the consumer has it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

from benchmarks import replay_sides as sides
from benchmarks.replay_sides import Job

# Ray reads these when it is imported, here and in the processes that it starts; see `redraft.control.cluster`.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SLICES = {"raw": 16, "raw-joined": 16, "bytes": 16, "bytes-joined": 32}
SLICES |= {"ipc": 12, "tcp": 8, "curve": 8, "power": 8, "ray-actor": 1, "ray-queue": 1}
WARM_SHARE = 1 / 3  # of a slice: queues and the spool get their working size before the clock starts
PACED = ("raw", "ipc", "ray-actor")
MB = 1e6


class Failed(Exception):
    """A run did not end as it should; says who hung or broke."""


@dataclass(frozen=True, slots=True)
class Side:
    system: str
    producers: int
    paced: bool = False

    @property
    def name(self) -> str:
        return f"{self.system}-paced" if self.paced else f"{self.system}-{self.producers}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run. `slice_turns` is a multiple of 4 producers' batches. No round starts that may end too late."""

    rounds: int
    slice_turns: int
    paced_s: float
    limit_s: float
    total_s: float


QUICK = Plan(rounds=3, slice_turns=4096, paced_s=4.0, limit_s=40.0, total_s=270.0)
FULL = Plan(rounds=7, slice_turns=8192, paced_s=8.0, limit_s=90.0, total_s=1140.0)
SIDES = [Side(system, producers) for system in SLICES for producers in (1, 4)]
SIDES += [Side(system, 1, paced=True) for system in PACED]
Figures = dict[str, float]


# One run of one side without Ray: processes that are ready together, start together and are given a deadline.


def run_processes(job: Job) -> Figures:
    deadline = time.monotonic() + job.limit_s
    with _crew(job) as (crew, pids):
        _gather(crew, "ready", deadline)
        _tell(crew)
        began = _gather({"consumer": crew["consumer"]}, "warm", deadline)["consumer"]
        before = _cpu_s(pids)
        ended = _gather({"consumer": crew["consumer"]}, "done", deadline)["consumer"]
        after = _cpu_s(pids)
        _gather({name: pipe for name, pipe in crew.items() if name.startswith("producer")}, "done", deadline)
        _tell(crew)
        used = _gather(crew, "end", deadline)
    cpu_s: Counter[str] = Counter()
    for name, pid in pids.items():
        cpu_s[name.split()[0]] += after[pid] - before[pid]
    peak_bytes = sum(facts["peak_bytes"] for facts in used.values())
    return figures(job, ended - began, cpu_s, peak_bytes, used["consumer"]["latencies_s"])


def _cpu_s(pids: dict[str, int]) -> dict[int, float]:
    """CPU that each process has used, all its threads together; in steps of 10 ms."""
    import psutil

    return {pid: sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids.values()}


@contextlib.contextmanager
def _crew(job: Job) -> Iterator[tuple[dict, dict[str, int]]]:
    """Starts the processes of a side; yields their pipes and ids by name and leaves no process behind."""
    spawn = multiprocessing.get_context("spawn")
    crew, processes = {}, []
    try:
        for name, (part, number) in sides.parts(job).items():
            crew[name], theirs = spawn.Pipe()
            process = spawn.Process(target=sides.work, args=(part, job, number, theirs), name=name, daemon=True)
            process.start()
            processes.append(process)
            theirs.close()  # so that its death is seen as the end of the pipe
        yield crew, {process.name: process.pid for process in processes}
    finally:  # also after a good end: a service that stops would write its spool to the disk, beside the next side
        for process in processes:
            process.kill()
            process.join()
        for pipe in crew.values():
            pipe.close()


def _tell(crew: dict) -> None:
    for pipe in crew.values():
        pipe.send("on")


def _gather(crew: dict, what: str, deadline: float) -> dict:
    """One answer from each. Raises Failed, naming those that broke or hung."""
    answers: dict = {}
    while missing := {pipe: name for name, pipe in crew.items() if name not in answers}:
        heard = wait(list(missing), max(deadline - time.monotonic(), 0.0))
        if not heard:
            raise Failed(f"hung: {', '.join(missing.values())} had not reached {what!r} at the deadline")
        for pipe in heard:
            try:
                kind, answer = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise Failed(f"{missing[pipe]} died before {what!r}") from None
            if kind == "error":
                others = [name for other, name in missing.items() if other is not pipe]
                raise Failed(f"{missing[pipe]}: {answer}; not yet {what!r}: {', '.join(others) or 'no other'}")
            answers[missing[pipe]] = answer
    return answers


def figures(
    job: Job, seconds: float, cpu_s: dict[str, float], peak_bytes: float, latencies_s: Sequence[float]
) -> Figures:
    """`cpu_s` by role: service, consumer, producer."""
    turns = job.turns - job.warm
    found = {
        "turns_per_s": turns / seconds,
        "mb_per_s": turns * sides.TURN_BYTES / seconds / MB,
        "cpu_s_per_10k": sum(cpu_s.values()) / turns * 10_000,
        "peak_mb": peak_bytes / MB,
    }
    found |= {f"cpu_s_per_10k_{role}": used / turns * 10_000 for role, used in cpu_s.items()}
    if latencies_s:
        ordered = sorted(latencies_s)
        found["p50_ms"], found["p99_ms"] = (ordered[int(share * len(ordered))] * 1000 for share in (0.5, 0.99))
    return found


# One run of one side with Ray, which is started at the first of them.


def start_ray(folder: str) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=512 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        _temp_dir=folder,
    )


def stop_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def run_ray(job: Job) -> Figures:
    import ray

    actors: list = []
    try:
        if not ray.is_initialized():
            start_ray(os.path.join(os.path.dirname(job.folder), "ray"))
        return _run_ray(job, actors, time.monotonic() + job.limit_s)
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _run_ray(job: Job, actors: list, deadline: float) -> Figures:
    end = _ray_end(job, actors)
    workers = {"consumer": _start(actors, sides.RayWorker, end, job)}
    workers |= {f"producer {n}": _start(actors, sides.RayWorker, end, job) for n in range(job.producers)}
    _ray_gather({name: worker.ready.remote() for name, worker in workers.items()}, "ready", deadline)
    _reset_peaks(_tree_cpu_s())
    warm = {"consumer": workers["consumer"].consume.remote(job.warm)}
    done = {"consumer": workers["consumer"].consume.remote(job.turns - job.warm)}
    done |= {f"producer {n}": workers[f"producer {n}"].produce.remote(n) for n in range(job.producers)}
    began, _ = _ray_gather(warm, "warm", deadline)["consumer"]
    before = _tree_cpu_s()
    ended, latencies_s = _ray_gather(done, "done", deadline)["consumer"]
    after = _tree_cpu_s()
    cpu_s = {"ray": sum(used - before.get(pid, 0.0) for pid, used in after.items())}
    return figures(job, ended - began, cpu_s, sum(map(sides.peak_bytes, after)), latencies_s)


def _start(actors: list, kind: type, *args):
    """A new Ray actor, which is added to `actors`."""
    import ray

    actors.append(ray.remote(num_cpus=0)(kind).remote(*args))
    return actors[-1]


def _ray_end(job: Job, actors: list):
    if job.system == "ray-actor":
        return sides.RayActorEnd(_start(actors, sides.Buffer))
    from ray.util.queue import Queue

    queue = Queue(sides.WINDOW_TURNS, {"num_cpus": 0})
    actors.append(queue.actor)
    return sides.RayQueueEnd(queue)


def _ray_gather(calls: dict, what: str, deadline: float) -> dict:
    """The answer of each call. Raises Failed, naming those that hung; RayError where one broke."""
    import ray

    names = {call: name for name, call in calls.items()}
    left = list(names)
    while left:
        done, left = ray.wait(left, timeout=max(deadline - time.monotonic(), 0.0))
        if not done:
            raise Failed(f"hung: {', '.join(names[call] for call in left)} had not reached {what!r} at the deadline")
        ray.get(done)
    return {name: ray.get(call) for name, call in calls.items()}


def _tree_cpu_s() -> dict[int, float]:
    """CPU that each process of Ray has used, this one among them, by process id."""
    import psutil

    found = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            found[process.pid] = used.user + used.system
    return found


def _reset_peaks(pids: Iterable[int]) -> None:
    """Earlier runs were in these processes too."""
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")


# Rounds.


def run(side: Side, plan: Plan, root: str) -> Figures:
    turns = plan.slice_turns * SLICES[side.system]
    if side.paced:
        turns = int(plan.paced_s * sides.PACED_TURNS_S) // sides.GROUP_TURNS * sides.GROUP_TURNS
    warm = int(WARM_SHARE * turns) // sides.BATCH_TURNS * sides.BATCH_TURNS
    with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as folder:
        job = Job(side.system, side.producers, side.paced, turns, warm, folder, _free_ports(), plan.limit_s)
        return (run_ray if side.system.startswith("ray") else run_processes)(job)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def run_rounds(chosen: list[Side], plan: Plan, root: str) -> tuple[list[dict[str, Figures]], dict[str, str]]:
    """The figures of each round by side, and why a side failed: it is not run again."""
    rounds: list[dict[str, Figures]] = []
    failed: dict[str, str] = {}
    began = time.monotonic()
    for number in range(plan.rounds):
        spent_s = time.monotonic() - began
        if rounds and spent_s * (number + 1) / number > plan.total_s:
            _say(f"no time for round {number + 1}: {spent_s:.0f} s are spent")
            break
        rounds.append({})
        shift = number * len(chosen) // plan.rounds
        for side in chosen[shift:] + chosen[:shift]:
            if side.name not in failed:
                _run_one(side, plan, root, f"round {number + 1}/{plan.rounds}", rounds[-1], failed)
    return rounds, failed


def _run_one(
    side: Side, plan: Plan, root: str, label: str, results: dict[str, Figures], failed: dict[str, str]
) -> None:
    began = time.monotonic()
    try:
        found = results[side.name] = run(side, plan, root)
        told = f"{found['turns_per_s']:7.0f} turns/s  {found['cpu_s_per_10k']:5.2f} CPU-s/10k"
        told += f"  p99 {found['p99_ms']:.1f} ms" if "p99_ms" in found else ""
    except Failed as error:
        failed[side.name] = told = str(error)
    _say(f"{label}  {side.name:<15} {told}  ({time.monotonic() - began:.1f} s)")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Results.


def summary(rounds: list[dict[str, Figures]], failed: dict[str, str], plan: Plan) -> dict:
    ratio = lambda key, side, other: _ratio(rounds, key, side, other)  # noqa: E731
    medians = {side.name: _medians([found[side.name] for found in rounds if side.name in found]) for side in SIDES}
    return {
        "ratio_to_raw": ratio("turns_per_s", "ipc-4", "raw-4"),
        "cpu_ratio_to_raw_joined": ratio("cpu_s_per_10k", "ipc-4", "raw-joined-4"),
        "ratio_to_raw_bytes": ratio("turns_per_s", "ipc-4", "bytes-4"),
        "cpu_ratio_to_raw_bytes_joined": ratio("cpu_s_per_10k", "ipc-4", "bytes-joined-4"),
        "ratio_to_ray_actor": ratio("turns_per_s", "ipc-4", "ray-actor-4"),
        "ratio_to_ray_queue": ratio("turns_per_s", "ipc-4", "ray-queue-4"),
        "paced_p99_ms": (medians["ipc-paced"] or {}).get("p99_ms"),
        "rounds": len(rounds),
        "quick": plan is QUICK,
        "turn_bytes": sides.TURN_BYTES,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "failed": failed,
        "sides": {name: found for name, found in medians.items() if found},
    }


def _ratio(rounds: list[dict[str, Figures]], key: str, side: str, other: str) -> float | None:
    """The median of the rounds' ratios; None where no round had both."""
    found = [results[side][key] / results[other][key] for results in rounds if side in results and other in results]
    return round(statistics.median(found), 3) if found else None


def _medians(runs: list[Figures]) -> Figures | None:
    if not runs:
        return None
    rates = [found["turns_per_s"] for found in runs]
    medians = {key: round(statistics.median(found[key] for found in runs), 3) for key in runs[0]}
    return medians | {"slowest": round(min(rates), 3), "fastest": round(max(rates), 3), "runs": len(runs)}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"medians of {result['rounds']} rounds, turns of {result['turn_bytes']} bytes")
    for heading in ("side", "turns/s", "slowest-fastest", "MB/s", "CPU s / 10k turns", "peak MB", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for name, found in result["sides"].items():
        span = f"{found['slowest']:.0f}-{found['fastest']:.0f}"
        latency = [f"{found[key]:.1f}" if key in found else "" for key in ("p50_ms", "p99_ms")]
        rate, mb, cpu, peak = (found[key] for key in ("turns_per_s", "mb_per_s", "cpu_s_per_10k", "peak_mb"))
        table.add_row(name, f"{rate:.0f}", span, f"{mb:.0f}", f"{cpu:.2f}", f"{peak:.0f}", *latency)
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)
    for name, reason in result["failed"].items():
        console.print(f"{name} failed: {reason}", soft_wrap=True, markup=False, highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on two cores; else under 20")
    names = [*SLICES, *(side.name for side in SIDES)]
    parser.add_argument("--only", action="append", metavar="SIDE", choices=names, help=f"one of {', '.join(names)}")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else FULL
    picked = [side for side in SIDES if not chosen.only or {side.name, side.system} & set(chosen.only)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as root:
        try:
            rounds, failed = run_rounds(picked, plan, root)
        finally:
            stop_ray()
    result = summary(rounds, failed, plan)
    show(result)
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
