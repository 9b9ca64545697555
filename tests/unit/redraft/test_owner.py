"""A run folder has one owner: a second command is refused before it writes, and a dead one holds nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support import processes
from support.places import ROOT

from protocols.errors import RedraftError, SettingError
from redraft import run as runs
from redraft.launch import train
from redraft.recipe import build

SETTINGS = {
    "name": "mine",
    "steps": 1,
    "model": {"make": {}},
    "environment": {"name": "signs"},
    "rollout": {"name": "attempt", "episodes": 2},
}
RECIPE = build(SETTINGS)
OWNS = """
import sys
from redraft import run as runs
from redraft.recipe import build
with runs.owned(build({recipe}), None, False, False) as owner:
    runs.create(build({recipe}), "model", owner)
    {then}
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def another():
    """A function that starts another process which owns runs/mine; ended with its children afterwards."""
    started = []

    def start(then: str = "pass") -> subprocess.Popen:
        code = OWNS.format(recipe=SETTINGS, then=then)
        process = processes.start(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def make(name: str | None = None, again: bool = False) -> runs.Run:
    """A run that was made and has ended."""
    with runs.owned(RECIPE, name, False, again) as owner:
        return runs.create(RECIPE, "model", owner, again=again)


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("resume", "again"), [(True, False), (False, True)], ids=["--resume", "--again"])
def test_a_folder_that_another_process_owns_is_refused_in_one_line_that_says_whose_it_is(another, resume, again):
    owner, before = another(), files()
    with pytest.raises(SettingError) as refused, runs.owned(RECIPE, None, resume, again):
        pass
    said = str(refused.value)
    assert "\n" not in said and f"process {owner.pid} on {socket.gethostname()}" in said, said
    assert "`redraft stop mine`" in said
    assert files() == before


def test_the_folder_of_a_process_that_was_killed_is_free_at_once(another):
    owner = another()
    owner.kill()
    owner.wait()
    assert make(again=True).id != json.loads(next(Path("runs").glob("mine-*/run.json")).read_text())["id"]


@pytest.mark.parametrize(
    "then",
    [
        "import subprocess; subprocess.Popen(['sleep', '600'])",
        "import os, signal; os.fork() or print('owned', flush=True); signal.pause()",  # the child says that it is there
    ],
    ids=["started", "forked"],
)
def test_a_child_that_outlives_the_owner_does_not_keep_the_folder(another, then):
    owner = another(then)
    owner.kill()
    owner.wait()
    with runs.owned(RECIPE, None, True, False):
        pass


def test_a_new_run_is_owned_from_the_moment_it_has_its_name(monkeypatch):
    named, seen = Path.rename, []

    def rename(path: Path, target):
        moved = named(path, target)
        if Path(target) == Path("runs/mine"):
            with open("runs/mine/lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(sorted(os.listdir(target)))
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    make()
    assert seen == [["lock", "logs", "recipe.yaml", "run.json"]]


def test_of_two_that_begin_a_run_of_one_name_the_second_is_refused_and_leaves_nothing():
    with runs.owned(RECIPE, None, False, True) as first, runs.owned(RECIPE, None, False, True) as second:
        made = runs.create(RECIPE, "model", first, again=True)
        with pytest.raises(SettingError, match="in use by `redraft train`"):
            runs.create(RECIPE, "model", second, again=True)
        assert runs.find("mine") == made and os.listdir("runs") == ["mine"]


def test_again_owns_the_older_run_until_it_has_another_name_and_then_the_new_one():
    older = make()
    with runs.owned(RECIPE, None, False, True) as owner:
        with pytest.raises(SettingError, match="in use"), runs.owned(RECIPE, None, True, False):
            pass
        newer = runs.create(RECIPE, "model", owner, again=True)
        kept = next(Path("runs").glob("mine-*"))
        assert runs.find(str(kept)).id == older.id and runs.find("mine").id == newer.id
        with runs.owned(RECIPE, kept.name, True, False):
            pass  # the older run may be resumed under its new name
        with pytest.raises(SettingError, match="in use"), runs.owned(RECIPE, None, False, True):
            pass
    with runs.owned(RECIPE, None, True, False):
        pass


def test_a_command_that_fails_before_it_makes_its_run_leaves_no_folder_and_the_older_run_its_name():
    older = make()
    with pytest.raises(ZeroDivisionError), runs.owned(RECIPE, None, False, True):
        _ = 1 / 0
    assert runs.find("mine").id == older.id
    with pytest.raises(ZeroDivisionError), runs.owned(RECIPE, "other", False, False):
        _ = 1 / 0
    assert os.listdir("runs") == ["mine"]


@pytest.mark.parametrize(
    ("ended", "line", "free"),
    [
        ({"state": "failed", "steps": 0}, None, True),
        ({"state": "failed", "steps": 0, "try_again": True}, None, False),
        ({"state": "failed", "steps": 1}, {"step": 1}, False),
        ({"state": "stopped", "steps": 0}, None, False),
        (None, None, False),
    ],
)
def test_only_a_run_that_failed_before_its_first_step_gives_its_name_to_the_next(ended, line, free, monkeypatch):
    older, begun = make(), []
    if ended is not None:
        older.write("summary.json", ended)
    if line is not None:
        older.append("metrics.jsonl", line)

    def begins(recipe, owner, resume, again, *_):
        begun.append(runs.create(recipe, "model", owner, resume, again))

    monkeypatch.setattr(train, "_train", begins)
    if free:
        train.train(RECIPE, None, False, False, Path("cache"), Console(quiet=True))
        [kept] = Path("runs").glob("mine-*")
        assert runs.find(str(kept)).id == older.id and runs.find("mine").id == begun[0].id != older.id
    else:
        with pytest.raises(SettingError, match="--run: runs/mine exists"):
            train.train(RECIPE, None, False, False, Path("cache"), Console(quiet=True))
        assert runs.find("mine").id == older.id


def test_what_a_killed_command_had_begun_to_fill_is_removed_by_the_next_and_what_a_living_one_fills_is_not():
    left, alive = Path("runs/.mine.0123abcd"), Path("runs/.mine.4567abcd")
    for folder in (left, alive):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    with open(alive / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make()
    assert not left.exists() and (alive / "model.safetensors").exists()


def test_a_run_that_goes_on_may_be_read_and_what_is_read_keeps_its_name(another):
    another()
    with runs.reading("mine") as run, runs.reading("mine"):
        assert run.name == "mine"
    make("done")
    with runs.reading("done"), pytest.raises(SettingError, match="being read"), runs.owned(RECIPE, "done", False, True):
        pass
    with (
        runs.owned(RECIPE, "done", False, True),
        pytest.raises(RedraftError, match="about to rename"),
        runs.reading("done"),
    ):
        pass


def test_a_folder_that_cannot_be_locked_is_named(monkeypatch):
    make()

    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SettingError, match="mine/lock cannot be locked: Input/output error"):
        make(again=True)
