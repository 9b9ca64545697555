"""What staleness costs: one recipe at growing bounds, and at the bound that a run finds for itself, under each
correction.

    python -m benchmarks.staleness [--quick] [--only CORRECTION]... [--bound BOUND]... [--seeds N] [--again]

Each run is `redraft train` on recipes/signs-grpo.yaml, as benchmarks.methods drives it: a process of its own, with a
base model made for its seed, and all settings alike but the bound (`learner.max_staleness`) and the correction
(`learner.objective`). What it came to is a row of benchmarks/results/staleness.jsonl; a run that has one is not made
again, so that a benchmark that was cut off goes on. With --quick rows stay in the folder.

A bound is only met by actors that are faster than the learner. So a batch is trained on EPOCHS times, and the
environment answers at once: replay fills with groups up to the bound, and what is trained is as old as it allows. The
table says what staleness was in truth, the mean over all steps, those in which replay fills among them. With a batch
of several optimizer steps the trainer also leaves the policy that it began the batch with, which is what decoupled, tis
and the clips tell apart.

Columns: the first answer to the test tasks before training and after it (one sampled answer each), effective samples
(the share, mean over steps), masked tokens, staleness, the share of its time for which the bound kept the learner
waiting, the bound at the end, and wall time with the start of all processes and both evaluations.

Corrections: all are settings of objective grpo (docs/methods.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.methods import COSTS, Bench, Method, Result, mean, results, run, train

FOLDER = Path("runs/staleness")
ROWS = Path("benchmarks/results/staleness.jsonl")  # beneath the root
CORRECTIONS = {
    "none": "correction: none",
    "tis": "correction: tis",
    "decoupled": "correction: decoupled",
    "sequence-mask": "correction: tis, sequence_mask: [0.99, 1.01]",
    "cispo": "correction: none, loss: cispo",
    "gspo": "correction: none, ratio: sequence",
    "dppo": "correction: none, loss: dppo",
    "m2po": "correction: none, loss: m2po",
}
BOUNDS = ("0", "1", "4", "16", "64", "auto")
QUICK_CORRECTIONS, QUICK_BOUNDS = ("none", "decoupled"), ("0", "16", "auto")
EPOCHS = 4
SAME = (
    "steps=160",  # the oldest groups at the largest bound are trained after 64 of them
    "actors.groups=64",
    "learner.batch_groups=16",
    f"learner.updates={{epochs: {EPOCHS}}}",
    "learner.checkpoint_every=160",
    "learner.record={groups: 0}",
    "evaluation={n: 1000, turns: 1, independent: 1, greedy: false}",
)
QUICK = ("steps=30", "evaluation.n=200")
HEADS = (
    *("correction", "bound", "seeds", "right before", "after", "effective samples", "masked"),
    *("staleness", "held by the bound", "bound at the end", "wall s"),
)
FIT = ("effective_samples", "masked_share", "staleness", "held_share", "bound")


def methods() -> tuple[Method, ...]:
    """Each correction at each bound, by the name CORRECTION-BOUND."""
    return tuple(
        Method(
            f"{correction}-{bound}",
            "signs-grpo",
            (*SAME, f"learner.objective={{name: grpo, kl: 0.02, {setting}}}", f"learner.max_staleness={bound}"),
            QUICK,
        )
        for correction, setting in CORRECTIONS.items()
        for bound in BOUNDS
    )


def table(found: Sequence[Result]) -> str:
    """Markdown: a line a correction and bound, means over seeds."""
    lines = [HEADS, ("---",) * len(HEADS), *(_cells(result) for result in found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(result: Result) -> tuple[str, ...]:
    correction, _, bound = result.method.name.rpartition("-")
    rows = result.rows
    right = [mean([summary.sampled.accuracy_by_turn[0].value for summary in side]) for side in _sides(result)]
    fit = [mean([row.fit.get(key) for row in rows]) for key in FIT]
    wall = mean([row.wall_s for row in rows])
    return (correction, bound, str(len(rows)), *map(_number, (*right, *fit)), f"{wall:.0f}")


def _sides(result: Result) -> tuple[list, list]:
    return [row.before for row in result.rows], [row.last for row in result.rows]


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "-"


def line(found: Sequence[Result]) -> str:
    """The JSON line: means over seeds."""
    sides = {}
    for result in found:
        before, after = _sides(result)
        sides[result.method.name] = {
            "before": mean([one.sampled.accuracy_by_turn[0].value for one in before]),
            "after": mean([one.sampled.accuracy_by_turn[0].value for one in after]),
            **{key: mean([row.fit.get(key) for row in result.rows]) for key in FIT},
            **{key: mean([getattr(row, key) for row in result.rows]) for key in ("wall_s", *COSTS)},
            "seeds": len(result.rows),
        }
    return json.dumps({"staleness": sides})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.staleness", description=__doc__.splitlines()[0])
    quick = f"one seed, short runs, {' and '.join(QUICK_CORRECTIONS)} at {', '.join(QUICK_BOUNDS)}; ten minutes"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--only", action="append", choices=CORRECTIONS, metavar="CORRECTION")
    parser.add_argument("--bound", action="append", choices=BOUNDS, metavar="BOUND")
    parser.add_argument("--seeds", type=int, default=None, help="most seeds (default 3, 1 with --quick)")
    parser.add_argument("--again", action="store_true", help="train anew what was trained with older settings")
    parser.add_argument("--folder", type=Path, default=None, help=f"where runs are kept (default {FOLDER})")
    options = parser.parse_args()
    folder = options.folder or (FOLDER.with_name("staleness-quick") if options.quick else FOLDER)
    bench = Bench(folder, options.quick, methods(), ROWS)
    corrections = options.only or (QUICK_CORRECTIONS if options.quick else tuple(CORRECTIONS))
    bounds = options.bound or (QUICK_BOUNDS if options.quick else BOUNDS)
    chosen = [f"{correction}-{bound}" for correction in corrections for bound in bounds]
    train(bench, chosen, options.seeds or (1 if options.quick else 3), options.again)
    found = results(bench)
    print(table(found))
    print(line(found))


if __name__ == "__main__":
    run(main)
