"""Multi-turn generation of an actor beside offline vLLM: the same work through each, in one run, interleaved.

    python -m benchmarks.generation [--quick] [--device cpu|cuda] [--rounds N]

The work: waves of 64 and of 192 episodes at once, each of 4 turns. A question has 64 tokens, each turn samples exactly
64 (end tokens do not end it), and 11 tokens of feedback come between, so an episode ends with 353 tokens.

    actor     an `actors.actor.Actor` that is given leases: an asyncio task for each episode, rollout `retry`, an
              environment that answers at once, the actor's engine, turns built, encoded and streamed to a replay
              service in a process of its own; a wave ends when replay has acknowledged the last close row
    offline   `vllm.LLM.generate` called four times a wave, on all that came before and the feedback; with prefix
              caching, the same sampling parameters (log-probs of what was sampled, no text) and the same engine
              arguments; it makes no turns, and keeps vLLM's packed linears, since nobody replaces its weights, and
              on a CPU vLLM's smallest cache blocks, of 32 tokens (the actor's have 16)

Real: all of the above. Made for this: the environment, the model (0.8 million random weights: the smaller the model,
the more the work around it weighs), and that the weights stay as they are.

Each side is one process that lives for the whole run. Both are pinned to the same cores (one core with --device cpu,
where engines have one thread) and take turns, in alternating order; the replay service has another core. Figures are
medians over rounds; ratios are taken within rounds. "By CPU" compares CPU-seconds of a side's process: the same on an
idle machine, and steadier on a busy one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import generation_sides as sides
from benchmarks.generation_sides import MAX_LENGTH, Round, Setup
from redraft.config import ModelSettings
from replay.config import Endpoints

START_S = {"cpu": 90.0, "cuda": 600.0}  # CUDA graphs are made, and kernels compiled
ROUND_S = 60.0
END_S = 20.0  # for a process to end by itself, with those that its engine has
MODEL = {
    "tokenizer": "characters",
    "hidden": 96,
    "layers": 3,
    "heads": 3,
    "feed_forward": 288,
    "max_length": MAX_LENGTH,
}
SIZES = (64, 192)  # episodes at once


class Failed(Exception):
    """A side did not end as it should; says which."""


QUICK_ROUNDS, ROUNDS = 9, 25
Spent = dict[str, tuple[float, float]]  # by each side in one round: seconds, CPU-seconds


def setup(device: str, folder: str) -> tuple[Setup, tuple[int, ...]]:
    """How both sides are set up, and the cores of the replay service."""
    from actors.config import EnvironmentSettings
    from redraft.models import make as models

    cores = sorted(os.sched_getaffinity(0))
    own = cores[:1] if device == "cpu" else cores[:-1] or cores
    dtype = "float32" if device == "cpu" else "bfloat16"
    making = ModelSettings(dtype=dtype, make=MODEL)
    model = models.prepare(making, EnvironmentSettings(name="signs"), Path(folder, "models"), lambda line: None)
    replay = Endpoints(f"ipc://{folder}/ingest", f"ipc://{folder}/serve")
    return Setup(str(model), dtype, device, tuple(own), replay), tuple(cores[-1:])


@contextlib.contextmanager
def started(device: str, folder: str) -> Iterator[dict[str, Connection]]:
    """The pipes to both sides, ready to play; no process is left behind."""
    made, replay_cores = setup(device, folder)
    jobs = {"replay": (sides.serve_replay, (folder, made.replay, replay_cores))}
    jobs |= {name: (sides.work, (name, made)) for name in sides.SIDES}
    spawn, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    try:
        for name, (main, arguments) in jobs.items():
            pipes[name], theirs = spawn.Pipe()
            processes.append(spawn.Process(target=main, args=(*arguments, theirs), name=name))
            processes[-1].start()
            theirs.close()
            heard(name, pipes[name], START_S[device])  # one after the other: on a GPU each looks what memory is free
        yield {name: pipes[name] for name in sides.SIDES}
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(END_S)
            process.kill()
            process.join()


def heard(name: str, pipe: Connection, limit_s: float) -> tuple[float, float]:
    """What a side says: seconds, CPU-seconds. Raises Failed."""
    if not pipe.poll(limit_s):
        raise Failed(f"{name} said nothing for {limit_s:.0f} s")
    try:
        said = pipe.recv()
    except EOFError:
        raise Failed(f"the process of {name} has died") from None
    if isinstance(said, str):
        raise Failed(said)
    return said


def measure(pipes: dict[str, Connection], rounds: int) -> dict[int, list[Spent]]:
    """What each round took, by episodes at once; a first round warms up and is left out."""
    found: dict[int, list[Spent]] = {episodes: [] for episodes in SIZES}
    for number in range(rounds + 1):
        for episodes in SIZES:
            round, spent = Round(number, episodes), {}
            for name in sorted(pipes, reverse=bool(number % 2)):
                pipes[name].send(round)
                spent[name] = heard(name, pipes[name], ROUND_S)
            if number:
                found[episodes].append(spent)
            shown = ", ".join(f"{name} {seconds:.2f} s" for name, (seconds, _) in sorted(spent.items()))
            print(f"round {number}, {episodes} episodes: {shown}", file=sys.stderr, flush=True)
    return found


def summary(found: dict[int, list[Spent]]) -> dict:
    """Medians, and the ratio of the worse of the sizes."""
    sizes = {str(episodes): _size(Round(0, episodes).tokens, rounds) for episodes, rounds in found.items()}
    return {"offline_ratio": min(size["offline_ratio"] for size in sizes.values()), "sizes": sizes}


def _size(tokens: int, rounds: list[Spent]) -> dict:
    speeds = {
        f"{name}_tokens_per_s": round(tokens / statistics.median(spent[name][0] for spent in rounds))
        for name in rounds[0]
    }
    ratios = [statistics.median(spent["offline"][n] / spent["actor"][n] for spent in rounds) for n in (0, 1)]
    return speeds | {"offline_ratio": round(ratios[0], 3), "offline_cpu_ratio": round(ratios[1], 3)}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("episodes at once", "actor tokens/s", "offline tokens/s", "ratio", "ratio by CPU", box=None)
    for episodes, size in result["sizes"].items():
        speeds = [f"{size[f'{name}_tokens_per_s']:,}" for name in sides.SIDES]
        table.add_row(episodes, *speeds, f"{size['offline_ratio']:.3f}", f"{size['offline_cpu_ratio']:.3f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on two cores; else about 7")
    parser.add_argument("--device", choices=START_S, default="cpu")
    parser.add_argument("--rounds", type=int, help="instead of those of --quick or of the whole")
    chosen = parser.parse_args()
    import torch

    if (chosen.device == "cuda") != torch.cuda.is_available():
        parser.error("--device is cuda where PyTorch finds a GPU, which vLLM then uses, and cpu elsewhere")
    rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder,
            started(chosen.device, folder) as pipes,
        ):
            result = summary(measure(pipes, rounds))
    except Failed as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    show(result)
    facts = {"quick": chosen.quick, "device": chosen.device, "cores": os.cpu_count(), "rounds": rounds}
    print(json.dumps(result | facts | {"python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
