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

from benchmarks.chaos_parts import FAULTS, NAME, Storm, schedule

pytestmark = pytest.mark.ray

SEED = "REDRAFT_CHAOS_SEED"
HOLD_S = 4.0  # what is stopped or slow stays so
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
def storm(seed: int) -> Iterator[Storm]:
    """A run that makes steps; what it left is ended."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        found = Storm(place, RECIPE, seed, limit_s=deadline_s(LIMIT_S), hold_s=HOLD_S)
        try:
            found.start()
            yield found
        finally:
            found.close()


def hold(run: Storm, plan: list[str]) -> None:
    """Does what is planned, ends the run, and holds its folder against the invariants."""
    told = f"seed {run.seed}, {', '.join(plan)}; again: {SEED}={run.seed} pytest -s {__file__}"
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


@pytest.mark.prove
@pytest.mark.parametrize("seed", [int(os.environ.get(SEED, "1"))])
def test_a_run_goes_on_through_faults_and_its_folder_proves_it(seed):
    """Those after which nothing of the learner or the controller starts anew, one after another in one run."""
    with storm(seed) as run:
        hold(run, schedule(seed, len(FAULTS), tuple(FAULTS)))
