"""Folders of one process: what one that was killed left behind is removed, and nothing of the living."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import processes
from support.places import PYTHONPATH

from protocols import process_folder

ENGINE = """
import sys, tempfile
from protocols import process_folder
folder = process_folder.temporary(sys.argv[1])
assert process_folder.temporary(sys.argv[1]) == folder, "one for a process"
open(tempfile.gettempdir() + "/left", "w").close()
print(tempfile.gettempdir(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(process_folder, "SHARED", tmp_path)
    return tmp_path


def started(place: Path, run_id: str):
    """A process, and the folder in which it has left a file."""
    environment = os.environ | {"TMPDIR": str(place), "PYTHONPATH": PYTHONPATH}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = processes.start([sys.executable, "-c", ENGINE, run_id], env=environment, **pipes)
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_in_its_temporary_folder_is_removed_and_the_living_keep_theirs(place):
    (killed, dead), (lives, living) = started(place, "exp-1"), started(place, "exp-1")
    (place / "other").mkdir()
    try:
        assert dead.parent == place and stat.S_IMODE(dead.stat().st_mode) == 0o700 and (dead / "left").exists()
        assert process_folder.sweep() == []
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert process_folder.sweep() == [dead] and not dead.exists()
        assert (living / "left").exists() and (place / "other").exists()
    finally:
        processes.stop(lives)


def test_a_process_that_nobody_has_waited_for_yet_is_gone(place):
    killed, dead = started(place, "run")
    killed.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert process_folder.sweep() == [dead]
    killed.wait()


def test_folders_of_processes_that_cannot_be_seen_here_are_left_alone(place):
    theirs = place / "redraft-run-1-4194305"  # of a container that has the same folder; no number is so large here
    theirs.mkdir()
    assert process_folder.sweep() == [] and theirs.exists()


def test_what_an_earlier_process_of_the_same_number_left_is_no_obstacle(place):
    first = process_folder.made(place, "run")
    (first / "left").touch()
    assert process_folder.made(place, "run") == first and not list(first.iterdir())
