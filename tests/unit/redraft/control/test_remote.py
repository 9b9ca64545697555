"""The process that asks a controller says what it cannot do, is replaced when it dies, and ends with its view."""

from __future__ import annotations

import os
import threading

import psutil
import pytest
from rich.console import Console
from support.waiting import deadline_s

from protocols.errors import DeadlineError, RedraftError
from protocols.reports import Finding, RunEnded, StepLine, StepReport
from redraft.control import client
from redraft.control.remote import Remote
from redraft.owner import Owner
from redraft.run import Run
from redraft.watch.live import show_status


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that has been killed, and its cluster with it."""
    made = Run(tmp_path / "gone", "0123456789abcdef", "no/model", "127.0.0.1:1")
    made.folder.mkdir()
    made.save()
    return made


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "redraft.control.remote" in child.cmdline()]


def test_a_run_that_cannot_be_asked_is_told_from_one_that_has_ended_also_by_the_next_process(run):
    remote, owner = Remote(str(run.folder)), Owner(run.folder, "train")
    owner.take()
    with pytest.raises(RedraftError, match=f"gone cannot be asked.* process {os.getpid()} on .* has it"):
        remote.status()
    owner.release()
    ended = RunEnded("gone", "done", steps=3, findings=(Finding("groups_flat", "They are.", "Vary.", 1.0, 1),))
    run.write("summary.json", ended.to_json())
    [child] = children()
    assert remote.status() == ended and child.is_running()
    child.kill()
    child.wait()
    assert remote.status() == ended
    remote.close()
    assert not children()
    with pytest.raises(RedraftError):
        remote.status()


def test_a_run_whose_controller_was_killed_says_how_far_it_was_and_how_to_go_on(run):
    for step in (1, 2, 3):
        run.append("metrics.jsonl", StepLine(StepReport(step=step, version=step), time_s=2.0 * step).to_json())
    (run.checkpoints / "step-000002").mkdir(parents=True)
    found = client.status(str(run.folder))
    assert (found.state, found.steps, found.checkpoint, found.try_again) == ("crashed", 3, 2, True)
    console = Console(record=True, width=200)
    show_status("gone", found, console, run.folder)
    said = console.export_text()
    assert "gone: crashed after 3 steps, 6 s" in said and "newest checkpoint: step 2" in said
    assert f"Go on with: redraft train {run.folder / 'recipe.yaml'} --run gone --resume" in said


def test_an_answer_that_does_not_come_is_not_waited_for(run):
    remote = Remote(str(run.folder), limit_s=0.01)  # Python alone takes longer to start
    with pytest.raises(DeadlineError, match="the controller of"):
        remote.status()
    assert not children()


def test_closing_ends_a_question_that_waits(run, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)  # so that no answer ever comes
    remote, raised = Remote(str(run.folder)), []
    asking = threading.Thread(target=lambda: raised.append(pytest.raises(RedraftError, remote.status)))
    asking.start()
    while asking.is_alive() and not children():
        asking.join(0.01)
    remote.close()
    asking.join(deadline_s(30))
    assert raised and not children()
