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

from benchmarks.chaos_parts import FAULTS, MILD, NAME, Storm, disk, schedule

pytestmark = pytest.mark.ray

SCHEDULES = "REDRAFT_CHAOS_SCHEDULES"  # how many, in proofs
FIRST = "REDRAFT_CHAOS_SEED"  # of the first of them
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
def storm(seed: int, hold_s: float, small_disk: bool) -> Iterator[tuple[Storm, bool]]:
    """A run that makes steps, and whether its disk may be filled; what it left is ended."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        with disk(place) if small_disk else _none() as mounted:
            found = Storm(place, RECIPE, seed, limit_s=deadline_s(LIMIT_S), hold_s=hold_s)
            try:
                found.start()
                yield found, mounted
            finally:
                found.close()


@contextmanager
def _none() -> Iterator[bool]:
    yield False


def hold(run: Storm, plan: list[str]) -> None:
    """Does what is planned, ends the run, and holds its folder against the invariants."""
    told = f"seed {run.seed}, {', '.join(plan)}; again: {FIRST}={run.seed} {SCHEDULES}=1 pytest -m prove -s {__file__}"
    try:
        for fault in plan:
            cost = run.do(fault)
            print(f"  {cost.fault}: steps again after {cost.seconds:.1f} s, {cost.steps} steps done anew")
        run.stop()
        assert run.process is not None and run.process.returncode == 0, run.said()
        checked = run.command("check", NAME)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        again = run.command("replay", "train", NAME)
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
        print(f"  {again.stdout.splitlines()[-1]}")
    except BaseException:
        for log in sorted((run.run / "logs").glob("*.log")):
            print(log.name, *log.read_text(errors="replace").splitlines()[-LOGGED:], sep="\n    ")
        print(f"{run.said()}\nFAILED: {told}")
        raise


def test_a_run_goes_on_through_faults_and_its_folder_proves_it():
    """Those after which nothing of the learner or the controller starts anew, one after another in one run."""
    with storm(seed=1, hold_s=4.0, small_disk=False) as (run, _):
        hold(run, schedule(1, len(MILD), MILD))


def seeds() -> list[int]:
    first = int(os.environ.get(FIRST, "100"))
    return list(range(first, first + int(os.environ.get(SCHEDULES, "5"))))


@pytest.mark.prove
@pytest.mark.parametrize("seed", seeds())
def test_schedules_of_all_faults_lose_nothing(seed):
    """Each has every kind of fault once, in an order of its own."""
    with storm(seed, hold_s=8.0, small_disk=True) as (run, mounted):
        faults = tuple(fault for fault in FAULTS if mounted or fault != "full disk")
        hold(run, schedule(seed, len(faults), faults))
