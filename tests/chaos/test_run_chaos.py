"""Whole runs under faults: replay, learner, controller and actors as they are, engines scripted; then the folder is
checked as `redraft check` does it, and the run is trained again from its journal.

A schedule is drawn from a seed. One that fails prints the seed, and the command that repeats it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.waiting import deadline_s

from benchmarks.chaos_parts import NAME, Storm, disk, possible, schedule

pytestmark = [pytest.mark.ray, pytest.mark.prove]

SCHEDULES = "REDRAFT_CHAOS_SCHEDULES"  # how many
SEED = "REDRAFT_CHAOS_SEED"  # of the first of them
HOLD_S = 4.0  # what is stopped, slow, full or cut off stays so
LIMIT_S = 120.0
LOGGED = 25  # lines of each log of a run that fails
RECIPE = {
    "steps": 1_000_000,
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
        "checkpoint_every": 5,
        "record": {"batches": True},
        "optimizer": {"lr": 1.0e-3},
    },
    "evaluation": {"n": 4, "independent": 1, "greedy": False},
}


@contextmanager
def storm(seed: int) -> Iterator[tuple[Storm, tuple[str, ...]]]:
    """A run that makes steps, and the faults that can be done to it here; what it left is ended."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        with disk(place) as mounted:
            found = Storm(place, RECIPE, seed, limit_s=deadline_s(LIMIT_S), hold_s=HOLD_S)
            try:
                found.start()
                yield found, possible(found, mounted)
            finally:
                found.close()


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


def seeds() -> list[int]:
    first = int(os.environ.get(SEED, "1"))
    return list(range(first, first + int(os.environ.get(SCHEDULES, "3"))))


@pytest.mark.parametrize("seed", seeds())
def test_a_run_goes_on_through_a_schedule_of_all_faults_and_its_folder_proves_it(seed):
    """Each kind comes once, in an order of the seed's own; then the run is held against the invariants."""
    with storm(seed) as (run, faults):
        plan = schedule(seed, len(faults), faults)
        again = f"{SEED}={seed} {SCHEDULES}=1 pytest -m prove -s {__file__}"
        with told(run, f"seed {seed}: {', '.join(plan)}", again):
            for fault in plan:
                cost = run.do(fault)
                print(f"  {cost.fault}: steps again after {cost.seconds:.1f} s, {cost.steps} steps done anew")
            run.stop()
            assert run.process is not None and run.process.returncode == 0, run.said()
            checked = run.command("check", NAME)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            trained = run.command("replay", "train", NAME)
            assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-3000:]
            print(f"  {trained.stdout.splitlines()[-1]}")
