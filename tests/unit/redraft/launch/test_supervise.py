"""A supervised run is resumed after faults and never after mistakes; the run itself is a script of the test here."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import processes
from support.places import PYTHONPATH
from support.waiting import deadline_s, until

from protocols.errors import FaultError, SettingError
from redraft.launch import supervise

SCRIPT = """
import json, os, pathlib, signal, sys
run = pathlib.Path("runs/named")
plan = json.loads(pathlib.Path("plan.json").read_text())
told = pathlib.Path("told.jsonl")
turn = len(told.read_text().splitlines()) if told.exists() else 0
with open(told, "a") as out:
    print(json.dumps(sys.argv[1:]), file=out)
run.mkdir(parents=True, exist_ok=True)
what = plan[turn]
if what.get("begins"):
    (run / "run.json").write_text(json.dumps({"id": what["begins"], "model": "m"}))
if "keeps" in what:
    (run / "checkpoints" / f"step-{what['keeps']:06d}").mkdir(parents=True)
if "ends" in what:
    (run / "summary.json").write_text(json.dumps({"state": what["ends"]}))
if what.get("waits"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    pathlib.Path("waiting").touch()
    signal.pause()
if "signal" in what:
    os.kill(os.getpid(), what["signal"])
sys.exit(what.get("exit", 0))
"""


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that supervises what a plan says of each process; returns the exit code and their arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervise, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(supervise.Supervisor, "PROGRAM", (sys.executable, str(tmp_path / "script.py")))

    def run(*plan: dict, flags: tuple[str, ...] = (), restarts: int = 2):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        try:
            code = supervise.Supervisor(["train", "r.yaml"], flags, "named", restarts).run()
        except FaultError as error:
            code = str(error)
        told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
        return code, [arguments[2:] for arguments in told]

    return run


@pytest.mark.parametrize("code", [0, 2, 70])
def test_what_is_done_or_a_mistake_is_not_started_again(supervised, code):
    assert supervised({"begins": "a", "exit": code}) == (code, [[]])


@pytest.mark.parametrize("fault", [{"exit": 75}, {"exit": 1}, {"signal": 9}, {"signal": 6}])
def test_after_a_fault_the_run_that_was_begun_is_resumed(supervised, tmp_path, fault):
    assert supervised({"begins": "a", **fault}, {"exit": 0}, flags=("--again",)) == (0, [["--again"], ["--resume"]])
    [line] = (tmp_path / "runs" / "named" / "restarts.jsonl").read_text().splitlines()
    assert json.loads(line)["checkpoint"] is None and json.loads(line)["why"]


def test_a_name_that_became_another_runs_between_two_tries_is_left_to_it(supervised, tmp_path):
    with pytest.raises(SettingError, match="is the run thief's now; nothing of the run a is written there"):
        supervised({"begins": "a", "exit": 75}, {"begins": "thief", "exit": 75}, {"exit": 0})
    assert len((tmp_path / "runs" / "named" / "restarts.jsonl").read_text().splitlines()) == 1


def test_a_fault_before_the_run_was_begun_begins_it_as_it_was_asked_for(supervised, tmp_path):
    older = tmp_path / "runs" / "named"
    older.mkdir(parents=True)
    (older / "run.json").write_text('{"id": "older", "model": "m"}')
    code, flags = supervised({"exit": 75}, {"begins": "newer", "exit": 75}, {}, flags=("--again",))
    assert (code, flags) == (0, [["--again"], ["--again"], ["--resume"]]), "an older run is not resumed in its place"


def test_faults_in_a_row_are_counted_and_a_checkpoint_begins_the_count_anew(supervised):
    fault = {"begins": "a", "exit": 75}
    code, flags = supervised(fault, fault | {"keeps": 1}, fault, fault, {}, restarts=2)
    assert "3 faults in a row without a new checkpoint; the last: exit code 75" in code
    assert flags == [[], ["--resume"], ["--resume"], ["--resume"]]


def test_what_an_earlier_run_of_the_name_says_of_its_end_is_not_taken_for_this_one(supervised, tmp_path):
    older = tmp_path / "runs" / "named"
    older.mkdir(parents=True)
    (older / "run.json").write_text('{"id": "older", "model": "m"}')
    (older / "summary.json").write_text('{"state": "done"}')
    code, flags = supervised({"exit": 75}, {"exit": 75}, {}, flags=("--resume",))
    assert (code, flags) == (0, [["--resume"]] * 3)


def test_a_run_that_is_done_but_whose_process_hung_at_its_end_is_done(supervised):
    assert supervised({"begins": "a", "ends": "done", "exit": 75}) == (0, [[]])


def test_who_ends_the_supervisor_ends_the_run_kindly_and_the_exit_code_says_that_it_may_go_on(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "plan.json").write_text('[{"begins": "a", "waits": true}]')
    code = f"""
import sys
from redraft.launch.supervise import Supervisor
Supervisor.PROGRAM = (sys.executable, {str(tmp_path / "script.py")!r})
sys.exit(Supervisor(["train", "r.yaml"], [], "named", 9).run())
"""
    command = [sys.executable, "-c", code]
    process = processes.start(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    until((tmp_path / "waiting").exists, "the run goes on", 30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(deadline_s(30)) == 75
    assert len((tmp_path / "told.jsonl").read_text().splitlines()) == 1, "it was not started again"


@pytest.mark.parametrize(
    ("number", "left", "code"),
    [(signal.SIGTERM, 15, 75), (signal.SIGTERM, 75, 75), (signal.SIGTERM, 2, 2), (signal.SIGINT, 1, 1)],
)
def test_a_command_that_was_told_to_end_may_go_on_however_it_ended_at_that(supervised, monkeypatch, number, left, code):
    def told(supervisor, before: str) -> int:
        supervisor._pass_on(number, None)
        Path("told.jsonl").write_text("[]\n")
        return left

    monkeypatch.setattr(supervise.Supervisor, "_run_once", told)
    assert supervised()[0] == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 75)])
def test_who_ends_the_supervisor_between_two_processes_starts_none_and_ctrl_c_is_no_fault(tmp_path, number, code):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "plan.json").write_text('[{"begins": "a", "keeps": 3, "exit": 75}]')
    program = f"""
import signal, sys
from redraft.launch import supervise
signal.signal(signal.SIGINT, signal.default_int_handler)
supervise.FIRST_PAUSE_S = 600.0
supervise.Supervisor.PROGRAM = (sys.executable, {str(tmp_path / "script.py")!r})
sys.exit(supervise.Supervisor(["train", "r.yaml"], [], "named", 9).run())
"""
    command = [sys.executable, "-c", program]
    process = processes.start(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    until((tmp_path / "runs" / "named" / "restarts.jsonl").exists, "it waits to resume", 30)
    process.send_signal(number)
    assert process.wait(deadline_s(30)) == code
    assert len((tmp_path / "told.jsonl").read_text().splitlines()) == 1


def test_a_signal_that_comes_while_a_process_starts_reaches_it_once(supervised, monkeypatch):
    told, begun = [], []

    class Child:
        def __init__(self, *_, **__):
            begun.append(self)
            supervisor._pass_on(signal.SIGTERM, None)  # who starts it cannot tell it yet

        def poll(self):
            return None

        def send_signal(self, number):
            told.append(number)

        def wait(self):
            supervisor._pass_on(signal.SIGTERM, None)  # again, as a second Ctrl-C
            return 75

    monkeypatch.setattr(supervise.subprocess, "Popen", Child)
    supervisor = supervise.Supervisor(["train", "r.yaml"], [], "named", 2)
    assert supervisor.run() == 75 and len(begun) == 1
    assert told == [signal.SIGTERM, signal.SIGTERM]


def test_a_full_disk_keeps_no_fault_from_being_tried_again(supervised, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervise.runs.Run, "append", full)
    assert supervised({"begins": "a", "exit": 75}, {"exit": 0})[0] == 0
    assert "restarts.jsonl is not written: [Errno 28]" in capfd.readouterr().err


def test_a_run_whose_supervisor_is_killed_is_told_to_end(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace("sys.exit(75)", 'pathlib.Path("ended").touch() or sys.exit(75)'))
    (tmp_path / "plan.json").write_text('[{"begins": "a", "waits": true}]')
    code = f"""
import sys
from redraft.launch.supervise import Supervisor
Supervisor.PROGRAM = (sys.executable, {str(tmp_path / "script.py")!r})
Supervisor(["train", "r.yaml"], [], "named", 9).run()
"""
    command = [sys.executable, "-c", code]
    process: subprocess.Popen = processes.start(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    until((tmp_path / "waiting").exists, "the run goes on", 30)
    process.kill()
    until((tmp_path / "ended").exists, "the run ends with its supervisor", 30)
