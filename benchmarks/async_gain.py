"""What asynchrony gains: one recipe trained synchronously and asynchronously, in environments of growing latency.

    python -m benchmarks.async_gain [--quick] [--device cpu|cuda]

Each side is `redraft train` on recipes/signs-grpo.yaml, from the same base model, with the same seed and the same
number of steps. They differ in one setting:

    sync      learner.max_staleness: 0    actors play the next batch when the weights of the last one are there
    async     learner.max_staleness: 4    actors play up to four steps ahead

A run has three stages, in which the environment answers at once, after 0.1 s, and after a heavy-tailed time (lognormal,
0.5 s on average, one in a hundred above 3 s, none above 10 s); both sides meet the same draws. A user whose
environments wait lets many episodes be in play: `actors.groups: 320` (five batches of 64 groups of 8) and
`environment.threads: 512`.

Real: all processes of a run, pinned to the same two cores on either side (eight with --device cuda), with one thread
for the engine and one for the learner. Simulated: the latency, which is a sleep.

Times come from metrics.jsonl, so start-up does not count, and of each stage the first five steps do not. Phases are
those of the sync side's own metrics: generation is what the learner waits for a batch, learning is the rest of the
step. With ideal overlap a step takes as long as the longer of them; `ideal_ratio` is that, without latency, over what
a step of the async side took. `accuracy` is that of one sampled answer to 1,000 test tasks after all steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from redraft.config import ModelSettings

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "signs-grpo.yaml"
CACHE = Path(".cache/models")
SIDES = {"sync": 0, "async": 4}  # learner.max_staleness
CORES = {"cpu": 2, "cuda": 8}
WARM = 5  # steps of a stage that are left out: as many batches are in play when it begins
LIMIT_S = 900.0  # of one run
GPU = {
    "model": {"dtype": "bfloat16"},
    "actors": {"gpus": 0.5, "engine": {"gpu_memory": 0.3}},
    "learner": {"gpus": 0.5, "attention": "sdpa"},
}


class Failed(Exception):
    """A run that did not end well; its message holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`stages` are steps by latency, in order."""

    seeds: int
    stages: dict[str, int]

    @property
    def steps(self) -> int:
        return sum(self.stages.values())


STAGES = {"none": 14, "short": 8, "heavy": 12}
QUICK, FULL = Plan(1, STAGES), Plan(3, STAGES)


@dataclass(frozen=True, slots=True)
class Stage:
    """One latency of one run, means over its steps: seconds a step, and those that the learner waited for a batch."""

    step_s: float
    wait_s: float
    staleness: float

    @property
    def longest_phase_s(self) -> float:
        """A step's time with ideal overlap of generation and learning, where this run had none."""
        return max(self.wait_s, self.step_s - self.wait_s)


@dataclass(frozen=True, slots=True)
class Result:
    accuracy: float
    stages: dict[str, Stage]


# One run.


def values(side: str, seed: int, plan: Plan, device: str, model: Path) -> dict:
    """The recipe of a run."""
    from benchmarks.async_gain_parts import SlowSigns

    recipe = yaml.safe_load(RECIPE.read_text())
    groups, episodes = recipe["learner"]["batch_groups"], recipe["rollout"]["episodes"]
    # An environment knows its place up to the number of its episode: stages begin a little later, never too early.
    firsts = [sum(list(plan.stages.values())[:n]) * groups + (n > 0) * episodes for n in range(len(plan.stages))]
    options = {"stages": [list(pair) for pair in zip(firsts, plan.stages, strict=True)], "first_seed": seed}
    changes = {
        "seed": seed,
        "steps": plan.steps,
        "model": {"make": None, "path": str(model)},
        "environment": {"name": f"{SlowSigns.__module__}:SlowSigns", "threads": 512, "options": options},
        "actors": {"groups": (1 + max(SIDES.values())) * groups},
        "learner": {
            "max_staleness": SIDES[side],
            "objective": {"correction": "decoupled"},
            "checkpoint_every": plan.steps,
            "record": {"groups": 0},
        },
        "evaluation": {"n": 1000, "independent": 1, "greedy": False},
    }
    for change in (changes, GPU if device == "cuda" else {}):
        merge(recipe, change)
    return recipe


def merge(into: dict, changes: dict) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def train(side: str, seed: int, plan: Plan, device: str, model: Path, folder: Path) -> Result:
    """Runs `redraft train` to its end. Raises Failed."""
    name = f"{side}-{seed}"
    recipe, log = folder / f"{name}.yaml", folder / f"{name}.log"
    recipe.write_text(yaml.safe_dump(values(side, seed, plan, device, model)))
    command = [sys.executable, "-m", "redraft", "train", recipe.name, "--run", name]
    with log.open("w") as output:
        try:
            ended = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} took longer than {LIMIT_S:.0f} s:\n{log.read_text()[-2000:]}") from None
    if ended.returncode:
        raise Failed(f"{name} ended with {ended.returncode}:\n{log.read_text()[-2000:]}")
    run = folder / "runs" / name
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy = json.loads((run / "summary.json").read_text())["after"]["accuracy_by_turn"][0]
    return Result(accuracy, stages(steps, plan))


def stages(steps: Sequence[dict], plan: Plan) -> dict[str, Stage]:
    """What lines of metrics.jsonl say of each stage."""
    found, end = {}, 0
    for latency, count in plan.stages.items():
        end += count
        before, *counted = steps[end - count + WARM - 1 : end]
        found[latency] = Stage(
            (counted[-1]["time_s"] - before["time_s"]) / len(counted),
            statistics.mean(step["seconds"]["wait"] for step in counted),
            statistics.mean(step["staleness_mean"] for step in counted),
        )
    return found


# All of them.


def run(plan: Plan, device: str, model: Path, folder: Path) -> dict[str, list[Result]]:
    """Results of each side by seed; with each seed the other side goes first."""
    found: dict[str, list[Result]] = {side: [] for side in SIDES}
    for seed in range(plan.seeds):
        for side in sorted(SIDES, reverse=not seed % 2):
            found[side].append(train(side, seed, plan, device, model, folder))
            _say(side, seed, found[side][-1])
    return found


def _say(side: str, seed: int, result: Result) -> None:
    times = ", ".join(f"{latency} {stage.step_s:.2f}" for latency, stage in result.stages.items())
    print(f"{side}, seed {seed}: seconds a step {times}; right {result.accuracy:.3f}", file=sys.stderr, flush=True)


def summary(found: dict[str, list[Result]]) -> dict:
    """Medians over seeds; ratios are taken within a seed, and differences of accuracy over the means of all."""
    pairs = list(zip(found["sync"], found["async"], strict=True))
    latencies = {}
    for latency in pairs[0][0].stages:
        both = [(sync.stages[latency], other.stages[latency]) for sync, other in pairs]
        latencies[latency] = {
            "sync_step_s": _median(sync.step_s for sync, _ in both),
            "sync_wait_s": _median(sync.wait_s for sync, _ in both),
            "async_step_s": _median(other.step_s for _, other in both),
            "async_wait_s": _median(other.wait_s for _, other in both),
            "async_staleness": _median(other.staleness for _, other in both),
            "speedup": _median(sync.step_s / other.step_s for sync, other in both),
            "of_ideal": _median(sync.longest_phase_s / other.step_s for sync, other in both),
        }
    right = {side: round(statistics.mean(result.accuracy for result in results), 4) for side, results in found.items()}
    return {
        "ideal_ratio": latencies["none"]["of_ideal"],
        "heavy_tail_speedup": latencies["heavy"]["speedup"],
        "accuracy": right | {"difference": round(right["async"] - right["sync"], 4)},
        "latencies": latencies,
    }


def _median(values) -> float:
    return round(statistics.median(values), 3)


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = ("latency", "sync s/step", "of it waiting", "async s/step", "of it waiting", "staleness", "speed-up")
    table = Table(*heads, "of ideal overlap", box=None)
    for latency, figures in result["latencies"].items():
        table.add_row(latency, *(f"{value:.2f}" for value in _in_order(figures)))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _in_order(figures: dict) -> list[float]:
    keys = ("sync_step_s", "sync_wait_s", "async_step_s", "async_wait_s", "async_staleness", "speedup", "of_ideal")
    return [figures[key] for key in keys]


def base_model(cache: Path) -> Path:
    """The base model of the recipe, made in the cache unless it is there."""
    from actors.config import EnvironmentSettings
    from redraft.models import make as models

    recipe = yaml.safe_load(RECIPE.read_text())
    settings = ModelSettings(**recipe["model"])
    return models.prepare(settings, EnvironmentSettings(**recipe["environment"]), cache).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_gain", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on two cores; else about 15")
    parser.add_argument("--device", choices=CORES, default="cpu")
    chosen = parser.parse_args()
    import torch

    if (chosen.device == "cuda") != torch.cuda.is_available():
        parser.error("--device is cuda where PyTorch finds a GPU, which vLLM then uses, and cpu elsewhere")
    plan = QUICK if chosen.quick else FULL
    model = base_model(CACHE)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: CORES[chosen.device]])
    try:
        with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
            result = summary(run(plan, chosen.device, model, Path(folder)))
    except Failed as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    show(result)
    facts = {"quick": chosen.quick, "device": chosen.device, "cores": os.cpu_count(), "seeds": plan.seeds}
    print(json.dumps(result | facts | {"python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
