"""Where a file system has no locks, a lease that its owner touches keeps a second command out, and no dead one does."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import processes
from support.places import ROOT
from support.waiting import deadline_s, until

from protocols.errors import SettingError
from redraft import lease_file
from redraft import run as runs
from redraft.owner import holder
from redraft.recipe import build

RECIPE = build(
    {
        "name": "mine",
        "steps": 1,
        "model": {"make": {}},
        "environment": {"name": "signs"},
        "rollout": {"name": "attempt", "episodes": 2},
    }
)
OWNS = """
import sys
from pathlib import Path
from redraft import lease_file
lease_file.BEAT_S = 0.05
lease = lease_file.LeaseFile.take(Path("runs/mine"))
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def another():
    """Another process that owns runs/mine."""
    Path("runs/mine").mkdir(parents=True, exist_ok=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = processes.start([sys.executable, "-c", OWNS], **pipes, text=True, env=environment)
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


def make(again: bool = False) -> runs.Run:
    with runs.owned(RECIPE, None, False, again) as owner:
        return runs.create(RECIPE, "model", owner, again=again)


def test_a_second_command_is_refused_while_the_first_lives_and_so_under_the_name_that_its_run_gets():
    with runs.owned(RECIPE, None, False, True) as owner:
        older = runs.create(RECIPE, "model", owner, again=True)
        with pytest.raises(SettingError, match="in use by `redraft train`"), runs.owned(RECIPE, None, True, False):
            pass
        assert f"process {os.getpid()} on" in str(holder(older.folder))
    assert holder(older.folder) is None
    newer = make(again=True)
    assert newer.id != older.id and make(again=True).id != newer.id, "it was given back each time"
    assert not [path for path in Path("runs").rglob("*lease*")], "and nothing of it is left"


def test_the_folder_of_a_process_of_this_host_that_was_killed_is_free_at_once(another):
    with pytest.raises(BlockingIOError):
        lease_file.LeaseFile.take(Path("runs/mine"))
    assert lease_file.held(Path("runs/mine"))
    another.send_signal(signal.SIGKILL)
    another.wait()
    assert not lease_file.held(Path("runs/mine"))
    lease_file.LeaseFile.take(Path("runs/mine")).close()


def test_an_owner_that_finds_anothers_lease_ends_so_that_it_goes_on_with_nothing(another):
    file = Path("runs/mine/lease")
    theirs = file.with_name("theirs")
    theirs.write_text(json.dumps({"token": "theirs", "process": "elsewhere 1 1"}))
    theirs.rename(file)
    until(lambda: another.poll() is not None, "it ends", 30)
    assert another.returncode == 75 and "was taken by another command" in another.stderr.read()
    assert json.loads(file.read_text())["token"] == "theirs"


@pytest.mark.parametrize("lives", [True, False])
def test_a_lease_of_another_host_holds_as_long_as_it_is_touched(monkeypatch, lives):
    file, now = Path("runs/mine/lease"), [0.0]
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"token": "theirs", "process": "elsewhere 1 1"}))

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if lives and now[0] > lease_file.BEAT_S:
            os.utime(file, ns=(0, 12345))

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time=time.time)
    monkeypatch.setattr(lease_file, "time", clock)
    if lives:
        with pytest.raises(BlockingIOError):
            lease_file.LeaseFile.take(file.parent)
        assert json.loads(file.read_text())["token"] == "theirs" and now[0] < lease_file.SILENT_S
    else:
        lease_file.LeaseFile.take(file.parent).close()
        assert lease_file.SILENT_S <= now[0] < 2 * lease_file.SILENT_S
    assert [path.name for path in file.parent.iterdir()] == (["lease"] if lives else [])


def test_of_many_that_take_the_lease_of_a_dead_one_exactly_one_gets_it():
    file = Path("runs/mine/lease")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"token": "dead", "process": ""}))
    code = OWNS.replace("lease_file.BEAT_S = 0.05", "lease_file.SILENT_S = 1.0")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    several = [processes.start([sys.executable, "-c", code], **pipes, text=True, env=environment) for _ in range(4)]
    until(lambda: sum(one.poll() is not None for one in several) == 3, "all but one are refused", 60)
    [owner] = [one for one in several if one.poll() is None]
    assert owner.stdout.readline() == "owned\n"
    assert all("BlockingIOError" in one.communicate(timeout=deadline_s(10))[1] for one in several if one is not owner)
    owner.communicate("", timeout=deadline_s(10))
