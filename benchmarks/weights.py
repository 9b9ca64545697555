"""How long new weights take to every actor, and how long generations stand still for them, beside a plain copy.

    python -m benchmarks.weights [--quick] [--device cpu|cuda] [--sizes 300M,1.5B] [--rounds N]

For models of 0.4, 50 and 300 million random weights (the first is the quickstart's, float32; the others bfloat16) and,
where they are asked for, 1.5 and 7 billion, two actors each. A round is one version by each transport in turn: it is
published, both actors take it while their generations run on, and then each copies as many bytes with one `memcpy` at
the place where weights are loaded, between two steps of its engine: the limit. Figures are medians over rounds, without
a prefix those of `shared`.

    publish to applied   from the live weights until the last actor has proved that it computes with them: the sum of
        gather           copying them to where they can be had, and summing them
        send             until the bytes are on the actor's node, and will stay as they are while it reads
        check            whether they are those that were published
        apply            loading them into the engine, between two of its steps
        prove            reading the live parameters back, and the probe
    pause                the longest time between two steps of an engine while it takes a version, beyond the usual
    held                 all time between its steps meanwhile, beyond the usual
    token gap            the longest time that running generations wait for their next token meanwhile, beyond the
                         usual: also what checks, sums and the probe cost the steps on the same cores

Real: `learner.weights.publish` in a process of its own; its memory, or a broadcast between processes of this machine,
or Ray's object store and the node's files in /dev/shm; all that `actors.weights` does; vLLM, in process on a CPU and in
processes of its own on CUDA, where steps are not seen and the token gap stands for the pause. Simulated: a step scales
all weights; the controller, which passes a version on within 50 ms, is left out; prompts are random.

The share of a run is from a real run of recipes/quickstart.yaml without pretraining, whose engine loads the 0.4M model:
held of that model over the median time from one version to the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from benchmarks.weights_parts import Player, Publisher, Sent, Spec

# Ray reads these when it is imported, here and in the processes that it starts; see `redraft.control.cluster`.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240.0  # of a start or an update


@dataclass(frozen=True, slots=True)
class Size:
    """A model to make, how many generations run in each engine, and what the object store has to hold."""

    make: dict
    dtype: str
    generations: int
    store_bytes: int = 2 << 30


SIZES = {
    "0.4M": Size({}, "float32", 64),
    "50M": Size({"hidden": 512, "layers": 12, "heads": 8, "feed_forward": 2048}, "bfloat16", 16),
    "300M": Size({"hidden": 1024, "layers": 18, "heads": 16, "feed_forward": 4096}, "bfloat16", 8),
    "1.5B": Size({"hidden": 2048, "layers": 22, "heads": 16, "feed_forward": 8192}, "bfloat16", 8, 8 << 30),
    "7B": Size({"hidden": 3584, "layers": 28, "heads": 28, "feed_forward": 18944}, "bfloat16", 8, 32 << 30),
}
USUAL = ("0.4M", "50M", "300M")
TRANSPORTS = ("shared", "collective", "object_store")
PARTS = ("gather", "send", "check", "apply", "prove")
ACTORS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    steps: int  # of the quickstart


QUICK, FULL = Plan(rounds=4, steps=8), Plan(rounds=15, steps=40)


def measure(name: str, plan: Plan, device: str, cache: Path) -> dict:
    """The figures of one size."""
    import ray

    from actors.config import EnvironmentSettings
    from actors.transports import NodeFiles
    from redraft.config import MakeSettings, ModelSettings
    from redraft.control.workers import worker_environment
    from redraft.models.make import prepare

    size, gpus = SIZES[name], 1 / (ACTORS + 1) if device == "cuda" else 0
    made = ModelSettings(make=MakeSettings(max_length=512, **size.make), dtype=size.dtype)
    spec = Spec(
        str(prepare(made, EnvironmentSettings(name="signs"), cache, print)), size.dtype, ACTORS, size.generations
    )
    options = {"num_cpus": 0, "num_gpus": gpus, "runtime_env": worker_environment(1)}
    files = ray.remote(NodeFiles).options(num_cpus=0).remote(f"weights-{os.getpid()}")
    publisher = ray.remote(Publisher).options(**options).remote(spec, device)
    players = [
        ray.remote(Player).options(max_concurrency=1000, **options).remote(spec, number, files)
        for number in range(spec.actors)
    ]
    kinds = ray.get([player.start.remote() for player in players], timeout=LIMIT_S)
    rounds: dict[str, list[dict]] = {transport: [] for transport in TRANSPORTS}
    try:
        for number, transport in itertools.product(range(plan.rounds + 1), TRANSPORTS):
            sent = ray.get(publisher.publish.remote(transport), timeout=LIMIT_S)
            found = ray.get([player.update.remote(sent.ref) for player in players], timeout=LIMIT_S)
            if any(each["by"] != transport for each in found):
                raise RuntimeError(
                    f"a version that was to come by {transport} came by {[each['by'] for each in found]}"
                )
            figures = round_of(found, sent)
            print(f"{name} {transport} round {number}: {json.dumps(rounded(figures))}", file=sys.stderr, flush=True)
            rounds[transport] += [figures] if number else []  # the first one meets cold memory everywhere
        ray.get([player.close.remote() for player in players] + [files.close.remote()], timeout=LIMIT_S)
    finally:
        for actor in (*players, publisher, files):
            ray.kill(actor)
    others = {f"{by}_{key}": value for by in TRANSPORTS[1:] for key, value in medians(rounds[by]).items()}
    facts = {"bytes": sent.ref.size_bytes, "generations": spec.generations, "engine": kinds[0]}
    return medians(rounds["shared"]) | others | facts


def round_of(found: list[dict], sent: Sent) -> dict:
    """Of one version on all actors: the worst of them, and their mean for the copy."""
    figures = {"publish_to_applied_ms": 1e3 * (max(each["applied_at"] for each in found) - sent.began)}
    for key in ("pause_ms", "held_ms", "token_gap_ms", "usual_ms"):
        figures[key] = max(each[key] for each in found)
    figures["memcpy_ms"] = statistics.mean(each["memcpy_ms"] for each in found)
    figures["pause_of_memcpy"] = figures["pause_ms"] / figures["memcpy_ms"]
    figures["gather"] = 1e3 * sent.gather_s
    return figures | {part: max(each["parts_ms"][part] for each in found) for part in found[0]["parts_ms"]}


def medians(rounds: list[dict]) -> dict:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def quickstart(steps: int, folder: str) -> float:
    """Seconds from one version to the next in a real run, the median."""
    overrides = [f"steps={steps}", "model.make.pretrain=null", "evaluation.n=8"]
    command = [sys.executable, "-m", "redraft", "train", str(ROOT / "recipes" / "quickstart.yaml"), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    lines = Path(folder, "runs", "quickstart", "metrics.jsonl").read_text().splitlines()
    times = [json.loads(line)["time_s"] for line in lines]
    return statistics.median(later - earlier for earlier, later in pairwise(times))


def run(plan: Plan, sizes: list[str], device: str, folder: str) -> dict:
    import ray

    every_s = None
    if "0.4M" in sizes:
        every_s = quickstart(plan.steps, folder)
        print(f"quickstart: a version every {every_s:.2f} s", file=sys.stderr, flush=True)
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=max(SIZES[name].store_bytes for name in sizes),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        found = {name: measure(name, plan, device, Path(folder)) for name in sizes}
    finally:
        ray.shutdown()
    return {"step_s": every_s, "sizes": found}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    heads = ("model", "MB", "memcpy", "pause", "held", "token gap", "usual step", "publish to applied")
    for head in (*heads, *PARTS, "by broadcast", "by object store"):
        table.add_column(head, justify="right")
    keys = ("memcpy_ms", "pause_ms", "held_ms", "token_gap_ms", "usual_ms", "publish_to_applied_ms", *PARTS)
    keys += ("collective_publish_to_applied_ms", "object_store_publish_to_applied_ms")
    for name, found in result["sizes"].items():
        table.add_row(name, f"{found['bytes'] / 1e6:.1f}", *(f"{found[key]:.1f}" for key in keys))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def rounded(figures: dict) -> dict:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on two cores; else under 10")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the learner and the engines")
    parser.add_argument("--sizes", default=",".join(USUAL), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, help="instead of those of --quick or of the whole")
    chosen = parser.parse_args()
    if unknown := set(chosen.sizes.split(",")) - SIZES.keys():
        parser.error(f"--sizes: {', '.join(unknown)} is none of {', '.join(SIZES)}")
    plan = QUICK if chosen.quick else FULL
    plan = plan if chosen.rounds is None else replace(plan, rounds=chosen.rounds)
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
        result = run(plan, chosen.sizes.split(","), chosen.device, folder)
    show(result)
    sizes = result["sizes"]
    summary = {
        key: {name: round(found[key], 2) for name, found in sizes.items()}
        for key in (
            *("pause_ms", "publish_to_applied_ms", "memcpy_ms", "held_ms", "token_gap_ms", "pause_of_memcpy"),
            *(f"{by}_publish_to_applied_ms" for by in TRANSPORTS[1:]),
        )
    }
    if "0.4M" in sizes:
        step_s = result["step_s"]
        summary |= {"share_of_run": round(sizes["0.4M"]["held_ms"] / 1e3 / step_s, 5), "step_s": round(step_s, 3)}
    summary |= {
        "actors": ACTORS,
        "device": chosen.device,
        "quick": chosen.quick,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sizes": {name: rounded(found) for name, found in sizes.items()},
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
