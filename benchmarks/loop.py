"""The whole loop of a run beside other ways to do the same training, on `signs`, from one base model.

    python -m benchmarks.loop [--quick] [--only PART]... [--device cpu|cuda]

rise  recipes/quickstart.yaml (five answers with reflections between, advantage-weighted regression), and
grpo  recipes/signs-grpo.yaml (one answer, eight a task) beside a plain loop in one process, which plays a batch, learns
      from it and plays the next (`benchmarks.loop_plain`), with 1 and 2 threads; grpo also beside TRL's GRPOTrainer.
slow  GRPO on dialogues of three answers with reflections between, where the environment takes half a second in the
      mean, with a heavy tail (`loop_parts.SlowSigns`), beside GRPOTrainer with a `rollout_func` (see
      `benchmarks.loop_trl`).

What is compared is real: redraft is the command `redraft train`, with Ray, vLLM, replay on disk and checkpoints. Only
the latency is simulated, by sleeping. All sides see the same tasks in the same order, play as many answers, and take as
many optimizer steps with the same settings. The others learn from each batch with the weights that played it, redraft
from batches up to `learner.max_staleness` steps old.

Timed is the training alone. For redraft the clock begins when the learner begins to wait for its first batch, which is
when its actor gets the first leases, and ends when the last step's weights are published: the first step counts in
full, and so do checkpoints before the last step's end. For a loop in one process it runs from its first step to the end
of its last. Starting (imports, Ray, engine, models) is shown apart; evaluations count nowhere. Accuracy is that of the
model that came out, sampled by the plain loop on 500 test tasks, four times each: at the first and the last turn.
answers/s counts answers, not reflections. TRL is installed at the first use, from the package index that pip knows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.loop_parts import ROOT, Bench, Failed, trl_python

CACHE = ROOT / ".cache"
SLOW = (
    "environment={name: 'benchmarks.loop_parts:SlowSigns', feedback: residual, threads: 384, options: {mean_s: 0.5}}",
    "rollout={name: retry, turns: 3, reflect: true, episodes: 8}",
    "actors.engine.max_length=128",
    "learner.batch_groups=16",
    "learner.row_tokens=128",
    "learner.max_staleness=2",
    "evaluation.turns=3",
)
FAST = ("environment.options.mean_s=0",)


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison: a recipe, the sides that train it, and how long."""

    name: str
    recipe: str
    sides: tuple[str, ...]
    answers: int
    """Of one optimizer step."""
    steps: int
    quick: int
    """Steps with --quick."""
    changes: tuple[str, ...] = ()
    exam: tuple[str, ...] = ()
    """Further changes when the model is tried."""
    rounds: int = 3


PARTS = (
    Part("rise", "quickstart", ("redraft", "plain 1", "plain 2"), 128 * 5, 160, 16),
    Part("grpo", "signs-grpo", ("redraft", "plain 1", "plain 2", "trl 2"), 64 * 8, 60, 20),
    Part("slow", "signs-grpo", ("redraft", "trl 2"), 16 * 8 * 3, 30, 5, SLOW, FAST, rounds=1),
)


def measure(bench: Bench, part: Part, steps: int, rounds: int) -> dict[str, list[dict]]:
    """What each side came to in each round; every other round runs them the other way round."""
    found: dict[str, list[dict]] = {side: [] for side in part.sides}
    for number in range(rounds):
        for side in part.sides[:: -1 if number % 2 else 1]:
            result = run(bench, part, side, steps, number)
            found[side].append(result)
            shown = f"{part.name}, round {number + 1}, {side}: {result['wall_s']:.1f} s, {result['cpu_s']:.1f} CPU-s"
            print(f"{shown}, accuracy {result['accuracy']}", file=sys.stderr, flush=True)
    return found


def run(bench: Bench, part: Part, side: str, steps: int, seed: int) -> dict:
    """One side once: trains, then tries the model that came out."""
    kind, *threads = side.split()
    changes, here = [*part.changes, f"seed={seed}", f"steps={steps}"], Path(sys.executable)
    if kind == "plain":
        return bench.torch(here, "benchmarks.loop_plain", part.recipe, changes, threads=int(threads[0]))
    if kind == "trl":
        more = {"threads": int(threads[0]), "out": str(bench.folder / f"trl-{part.name}-{seed}")}
        result = bench.torch(trl_python(CACHE / "bench-trl"), "benchmarks.loop_trl", part.recipe, changes, **more)
    else:
        result = bench.redraft(f"{part.name}-{seed}", part.recipe, changes)
    changes = [*changes, *part.exam, "steps=0"]
    exam = bench.torch(here, "benchmarks.loop_plain", part.recipe, changes, threads=1, model=result["model"])
    return result | {"accuracy": exam["accuracy"]}


def middle(rounds: list[dict], answers: int) -> dict:
    """The medians of one side."""
    wall_s = median(one["wall_s"] for one in rounds)
    figures = {"wall_s": wall_s, "answers_per_s": answers / wall_s}
    figures |= {key: median(one[key] for one in rounds) for key in ("cpu_s", "start_s")}
    accuracy = [median(turns) for turns in zip(*(one["accuracy"] for one in rounds), strict=True)]
    more = {key: rounds[-1][key] for key in ("playing_s", "learning_s", "learner_s", "staleness") if key in rounds[-1]}
    return figures | {"accuracy": accuracy} | more


def show(part: Part, sides: dict[str, dict], steps: int, rounds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title=f"{part.name}: {steps} steps, median of {rounds}", title_justify="left")
    for head in ("side", "wall s", "CPU-s", "answers/s", "accuracy", "start s", "of which"):
        table.add_column(head, justify="left" if head in ("side", "of which") else "right")
    for side, figures in sides.items():
        first, last = figures["accuracy"][0], figures["accuracy"][-1]
        table.add_row(
            side,
            f"{figures['wall_s']:.1f}",
            f"{figures['cpu_s']:.1f}",
            f"{figures['answers_per_s']:,.0f}",
            f"{first:.2f}" if len(figures["accuracy"]) == 1 else f"{first:.2f} / {last:.2f}",
            f"{figures['start_s']:.0f}",
            _spent(figures),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _spent(figures: dict) -> str:
    """Where the wall time of the side, or that of redraft's learner, went."""
    phases = figures.get("learner_s") or {
        name: figures[f"{name}_s"] for name in ("playing", "learning") if f"{name}_s" in figures
    }
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items() if seconds >= 0.1)


def ratios(parts: dict[str, dict[str, dict]]) -> dict[str, float | None]:
    """The figures that the page of results quotes; None of a part that was not run."""

    def ratio(part: str, over: str, under: str) -> float | None:
        sides = parts.get(part)
        return round(sides[over]["wall_s"] / sides[under]["wall_s"], 3) if sides else None

    return {
        "wall_over_plain": ratio("rise", "redraft", "plain 1"),
        "grpo_wall_over_plain": ratio("grpo", "redraft", "plain 1"),
        "wall_over_trl_single": ratio("grpo", "redraft", "trl 2"),
        "speedup_over_trl": ratio("slow", "trl 2", "redraft"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds: under 15 minutes")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="redraft-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), base_model(), options.device)
        for part in PARTS:
            if options.only and part.name not in options.only:
                continue
            steps, rounds = (part.quick, min(2, part.rounds)) if options.quick else (part.steps, part.rounds)
            played = measure(bench, part, steps, rounds)
            found[part.name] = {side: middle(played[side], part.answers * steps) for side in part.sides}
            show(part, found[part.name], steps, rounds)
    summary = ratios(found) | {
        "quick": options.quick,
        "device": options.device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "parts": found,
    }
    print(json.dumps(summary))
    return 0


def base_model() -> Path:
    """The base model that both recipes name, made at the first use."""
    from redraft import recipe
    from redraft.models import make as models

    made = recipe.load(ROOT / "recipes" / "quickstart.yaml")
    progress = partial(print, file=sys.stderr, flush=True)
    return models.prepare(made.model, made.environment, CACHE / "models", progress).resolve()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
