"""A full disk costs a run nothing that it has written, and what it could not write comes when there is room."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.places import RECIPES

from protocols.reports import StepReport
from redraft import recipe as recipes
from redraft import records
from redraft.control import faults
from redraft.control.status import Status
from redraft.run import Run


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "0123456789abcdef", "no/model")


def test_lines_of_steps_wait_for_room_and_are_written_in_their_order(run, monkeypatch, caplog):
    status = Status(run, recipes.load(RECIPES / "quickstart.yaml"))
    status.step_done(StepReport(step=1))
    with monkeypatch.context() as patched:
        patched.setattr(Run, "append", full)
        for step in (2, 3):
            status.step_done(StepReport(step=step))
    assert caplog.text.count("metrics.jsonl cannot be written until there is room") == 1
    status.look()
    status.step_done(StepReport(step=4))
    assert [line.report.step for line in records.step_lines(run.folder)] == [1, 2, 3, 4]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(run, monkeypatch):
    run.replace("recipe.yaml", "name: before\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        run.replace("recipe.yaml", "name: after\n")
    assert (run.folder / "recipe.yaml").read_bytes() == b"name: before\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_is_a_fault_after_which_the_same_command_may_go_on(number):
    assert faults.is_fault(OSError(number, "full")) and not faults.is_fault(OSError(errno.EACCES, "no"))
