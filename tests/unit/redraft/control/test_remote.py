"""The process that asks a controller says what it cannot do, is replaced when it dies, and ends with its view."""

from __future__ import annotations

import threading

import psutil
import pytest
from support.waiting import deadline_s

from protocols.errors import DeadlineError, RedraftError
from protocols.reports import Finding, RunEnded
from redraft.control.remote import Remote
from redraft.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that has been killed, and its cluster with it."""
    made = Run(tmp_path / "gone", "0123456789abcdef", "no/model", "127.0.0.1:1")
    made.folder.mkdir()
    made.save()
    return made


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "redraft.control.remote" in child.cmdline()]


def test_a_run_that_is_gone_is_told_from_one_that_has_ended_also_by_the_next_process(run):
    remote = Remote(str(run.folder))
    with pytest.raises(RedraftError, match="gone is not running"):
        remote.status()
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


def test_an_answer_that_does_not_come_is_not_waited_for(run):
    remote = Remote(str(run.folder), limit_s=0.01)  # Python alone takes longer to start
    with pytest.raises(DeadlineError, match="the controller of"):
        remote.status()
    assert not children()


def test_closing_ends_a_question_that_waits(run):
    remote, raised = Remote(str(run.folder)), []
    asking = threading.Thread(target=lambda: raised.append(pytest.raises(RedraftError, remote.status)))
    asking.start()
    while asking.is_alive() and not children():
        asking.join(0.01)
    remote.close()
    asking.join(deadline_s(30))
    assert raised and not children()
