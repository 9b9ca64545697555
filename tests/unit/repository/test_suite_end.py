"""The end of the suite finds what is left of it, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support import processes, suite_end
from support.waiting import until

HELD = "import signal, socket; held = socket.create_server(('127.0.0.1', 0)); print(flush=True); signal.pause()"
LEAVES = f"""
import sys
from subprocess import PIPE, Popen
child = Popen([sys.executable, "-c", {HELD!r}], stdout=PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""


def orphan(monkeypatch, mark: str) -> int:
    """A process of a suite with this mark that listens, and whose parent has ended."""
    monkeypatch.setenv(suite_end.MARK, f"outer:{mark}")
    parent = processes.start([sys.executable, "-c", LEAVES], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.wait()
    return pid


def test_what_outlives_its_suite_is_told_with_where_it_listens_and_what_others_started_is_not(monkeypatch):
    mine, other = orphan(monkeypatch, "mine"), orphan(monkeypatch, "other")
    [told] = until(lambda: suite_end.left("mine", None, 0.0), "the orphan is seen")
    assert str(mine) in told and "listens at port" in told and str(other) not in told
    assert len(suite_end.left("outer", None, 0.0)) == 2, "a suite within a suite is of both"


def test_what_ends_with_the_suite_is_not_left_behind(monkeypatch):
    monkeypatch.setenv(suite_end.MARK, "mine")
    helper = processes.start([sys.executable, "-c", HELD], stdout=subprocess.PIPE)
    helper.stdout.readline()
    assert suite_end.left("mine", None, 0.0) == []


def test_weight_files_are_the_suites_where_their_run_is_and_their_owner_has_ended(monkeypatch, tmp_path):
    ended = processes.start([sys.executable, "-c", ""])
    ended.wait()
    shared, runs = tmp_path / "shm", tmp_path / "runs"
    monkeypatch.setattr(suite_end, "SHARED", shared)
    for name in (f"redraft-aaaa-{ended.pid}", f"redraft-bbbb-{ended.pid}", f"redraft-aaaa-{os.getpid()}"):
        (shared / name).mkdir(parents=True)
    for name, run_id in (("mine", "aaaa"), ("torn", None)):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text(json.dumps({"id": run_id}) if run_id else '{"id": "bb')
    assert suite_end.left("mine", runs, 0.0) == [f"the weight files {shared}/redraft-aaaa-{ended.pid}"]
