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
from support.storm_house import RECIPE, told
from support.waiting import deadline_s

from benchmarks.chaos_parts import NAME, Storm, disk, possible, schedule
from redraft import records

pytestmark = [pytest.mark.ray, pytest.mark.prove]

SCHEDULES = "REDRAFT_CHAOS_SCHEDULES"  # how many
SEED = "REDRAFT_CHAOS_SEED"  # of the first of them
FAULTS = "REDRAFT_CHAOS_FAULTS"  # of each, at most: what a run costs before the first is shared by all of them
HOLD_S = 4.0  # what is stopped, slow, full or cut off stays so
LIMIT_S = 120.0


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


def seeds() -> list[int]:
    first = int(os.environ.get(SEED, "1"))
    return list(range(first, first + int(os.environ.get(SCHEDULES, "3"))))


@pytest.mark.parametrize("seed", seeds())
def test_a_run_goes_on_through_a_schedule_of_all_faults_and_its_folder_proves_it(seed):
    """No kind comes twice before each came, in an order of the seed's own; then the run is held against the
    invariants."""
    with storm(seed) as (run, faults):
        plan = schedule(seed, int(os.environ.get(FAULTS, len(faults))), faults)
        again = f"{SEED}={seed} {SCHEDULES}=1 {FAULTS}={len(plan)} pytest -m prove -s {__file__}"
        with told(run, f"seed {seed}: {', '.join(plan)}", again):
            for fault in plan:
                cost = run.do(fault)
                print(f"  {cost.fault}: steps again after {cost.seconds:.1f} s, {cost.steps} steps done anew")
            run.stop()
            assert run.process is not None and run.process.returncode == 0, run.said()
            lines = records.steps(records.step_lines(run.run))
            untrained = [line.report.step for line in lines if not line.report.fit.trained_tokens]
            assert not untrained, "versions of steps that train nothing are equal whatever was done to the run"
            checked = run.command("check", NAME)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            trained = run.command("replay", "train", NAME)
            assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-3000:]
            seconds = sorted(cost.seconds for cost in run.costs)
            print(f"  {trained.stdout.splitlines()[-1]}; steps again after {sum(seconds) / len(seconds):.1f} s (mean),")
            print(
                f"  {seconds[-1]:.1f} s (most); {sum(cost.steps for cost in run.costs)} of {len(lines)} steps done anew"
            )
