"""What a run says of its steps when it goes on after its controller was lost."""

from __future__ import annotations

import pytest
from support.places import RECIPES

from protocols.reports import StepLine, StepReport
from redraft import recipe as recipes
from redraft import records
from redraft.control.status import Status
from redraft.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "0123456789abcdef", "no/model")


def resumed(run: Run, written: list[int], checkpoint: int) -> list[int]:
    """The steps in the history of a run with these lines, once it has gone on from a checkpoint and done one more."""
    for step in written:
        run.append("metrics.jsonl", StepLine(StepReport(step=step), time_s=float(step)).to_json())
    status = Status(run, recipes.load(RECIPES / "quickstart.yaml"))
    status.started(checkpoint, 1, StepReport(step=checkpoint))
    status.step_done(StepReport(step=checkpoint + 1))
    return [line.report.step for line in records.steps(records.step_lines(run.folder))]


@pytest.mark.parametrize(
    ("written", "checkpoint"),
    [([1, 2, 3], 3), ([1, 2], 3), ([1, 2, 3, 4, 5], 3), ([1, 2, 3, 2], 3), ([], 1)],
    ids=["told", "not told", "ahead of it", "told only in a future that is lost", "nothing told"],
)
def test_each_step_up_to_the_checkpoint_is_there_once_whatever_its_controller_had_time_to_write(
    run, written, checkpoint
):
    assert resumed(run, written, checkpoint) == list(range(1, checkpoint + 2))


def test_a_run_that_ends_before_its_parts_are_up_again_still_says_how_far_it_was(run):
    (run.checkpoints / "step-000634").mkdir(parents=True)
    assert Status(run, recipes.load(RECIPES / "quickstart.yaml")).step == 634
