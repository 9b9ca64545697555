"""Whole runs that tests do faults to: a small recipe with scripted engines, and what is printed of a run that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.chaos_parts import Storm

LOGGED = 25  # lines of each log of a run that fails
RECIPE = {
    "steps": 999_999,
    "start_s": 200,
    "model": {"dtype": "float32", "make": {"seed": 0, "hidden": 32, "layers": 1, "heads": 1, "feed_forward": 64}},
    "environment": {"name": "benchmarks.chaos_environment:SlowCoins"},
    "rollout": {"name": "retry", "turns": 2, "episodes": 2},
    "sampling": {"max_tokens": 6},
    "actors": {
        "count": 2,
        "groups": 16,
        "cpus": 0.3,
        "silence_s": 6,
        "probe_tolerance": 1e6,  # a script has no weights that could be proved
        "engine": {"name": "scripted", "first_token_s": 0.1, "max_length": 64},
    },
    "learner": {
        "batch_groups": 8,
        "row_tokens": 128,
        "micro_tokens": 512,
        "attention": "eager",
        "credit": {"name": "raw"},  # a script answers all episodes of a group alike: compared, none would train
        "objective": {"name": "sft"},
        "checkpoint_every": 5,
        "record": {"batches": True},
        "optimizer": {"lr": 1.0e-3},
    },
    "evaluation": {"n": 4, "independent": 1, "greedy": False},
}


@contextmanager
def told(run: Storm, what: str, again: str) -> Iterator[None]:
    """Of a run that fails its logs are printed, what was done to it, and what does it again."""
    try:
        yield
    except BaseException:
        for log in sorted((run.run / "logs").glob("*.log")):
            print(log.name, *log.read_text(errors="replace").splitlines()[-LOGGED:], sep="\n    ")
        print(f"{run.said()}\nFAILED: {what}; again: {again}")
        raise
