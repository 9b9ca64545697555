"""The scripts in tools/ do what they say."""

import os
import shutil
import subprocess

from support.places import ROOT
from support.waiting import deadline_s


def debian(*pairs: str, path: str, stdin=subprocess.DEVNULL) -> subprocess.CompletedProcess:
    bash = shutil.which("bash")
    command = [bash, "tools/debian.sh", *pairs]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": path}, stdin=stdin, capture_output=True, text=True, timeout=deadline_s(30)
    )


def test_where_debian_packages_cannot_be_installed_the_tests_still_begin(tmp_path):
    answer = debian("promtool=prometheus", "chromium=chromium", path=str(tmp_path))
    assert answer.returncode == 0
    assert "prometheus chromium cannot be installed here (no apt-get)" in answer.stderr


def test_nothing_is_installed_for_a_command_that_is_there(tmp_path):
    (tmp_path / "promtool").write_text("")
    (tmp_path / "promtool").chmod(0o755)
    answer = debian("promtool=prometheus", path=str(tmp_path))
    assert answer.returncode == 0 and not answer.stdout + answer.stderr


def test_a_person_at_a_terminal_is_asked_before_anything_is_installed(tmp_path):
    for name, body in (("apt-get", f"touch {tmp_path}/installed"), ("id", "echo 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    person, terminal = os.openpty()
    with os.fdopen(person, "wb", buffering=0) as typing, os.fdopen(terminal, "rb", buffering=0) as stdin:
        typing.write(b"\n")
        answer = debian("promtool=prometheus", path=str(tmp_path), stdin=stdin)
    assert answer.returncode == 0 and "prometheus cannot be installed here (declined)" in answer.stderr
    assert not (tmp_path / "installed").exists()


def test_every_check_runs_to_its_end_and_the_worst_one_is_the_exit_status():
    command = ["tools/check.sh", "true", "false", "true"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=deadline_s(30))
    assert ended.returncode == 1
    summary = ended.stdout.split("== summary\n")[1].splitlines()
    assert [line.split()[:2] for line in summary] == [["true", "passed"], ["false", "FAILED"], ["true", "passed"]]
