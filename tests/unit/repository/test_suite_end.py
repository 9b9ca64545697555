"""The end of the suite finds what is left of it, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support import processes, suite_end
from support.places import PYTHONPATH
from support.waiting import until

from protocols import process_folder

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


OWNS = """
import sys
from pathlib import Path

from protocols import process_folder

process_folder.made(Path(sys.argv[1]), sys.argv[2])
"""


def test_weight_files_are_the_suites_where_their_run_is_and_their_owner_has_ended(monkeypatch, tmp_path):
    shared, runs = tmp_path / "shm", tmp_path / "runs"
    shared.mkdir()
    monkeypatch.setattr(process_folder, "SHARED", shared)
    for run_id in ("aaaaaa-1", "bbbbbb-1"):
        environment = os.environ | {"PYTHONPATH": PYTHONPATH}
        subprocess.run([sys.executable, "-c", OWNS, shared, run_id], check=True, env=environment)
    process_folder.made(shared, "aaaaaa-1")  # of a process that lives
    for name, run_id in (("mine", "aaaaaa-1"), ("torn", None)):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text(json.dumps({"id": run_id}) if run_id else '{"id": "bb')
    [told] = suite_end.left("mine", runs, 0.0)
    assert told.startswith(f"the weight files {shared}/redraft-aaaaaa-") and not told.endswith(f"-{os.getpid()}")
