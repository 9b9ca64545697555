"""The scripts in tools/ do what they say."""

import os
import re
import shutil
import subprocess

import pytest
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


PIP = """\
#!/usr/bin/env bash
# A pip that has an index it does not like, and takes until somebody has been told how far it is.
shift 3
case "$*" in
*"--requirement"*)
    [ -n "$PIP_FAILS" ] && echo "ERROR: No matching distribution found for beta==2" && exit 1
    printf 'Collecting alpha==1\\nCollecting beta==2\\n'
    for _ in $(seq 600); do grep -q '2 packages fetched' "$TOLD" && break; sleep 0.1; done
    ;;
*) echo "Collecting $1" ;;
esac
echo "WARNING: Location '/nowhere/simple' is ignored: it is either a non-existing path or lacks a scheme." >&2
echo "Installing collected packages: all"
"""
PYTHON = """\
#!/usr/bin/env bash
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin && cp pip.sh .venv/bin/python
"""


@pytest.fixture
def setup(tmp_path):
    """Sets up an environment with a stand-in for Python and pip; returns its exit code and what was told."""
    for folder, file in (("tools", "venv.sh"), ("requirements", "cpu.txt"), ("requirements", "docs.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        if (ROOT / folder / file).exists():
            shutil.copy(ROOT / folder / file, tmp_path / folder)
    (tmp_path / "pyproject.toml").write_text("")
    for name, text in (("pip.sh", PIP), ("python.sh", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    told = tmp_path / "told.txt"

    def run(**variables: str) -> tuple[int, str]:
        known = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python.sh"), "TOLD": str(told), "PIP_FAILS": ""}
        with open(told, "wb") as output:
            done = subprocess.run(
                [tmp_path / "tools" / "venv.sh"],
                env=known | variables,
                stdout=output,
                stderr=output,
                timeout=deadline_s(120),
            )
        return done.returncode, told.read_text()

    return run


def test_setting_up_tells_how_far_it_is_and_nothing_of_indices(setup):
    code, told = setup()
    assert code == 0, told
    lines = told.splitlines()
    assert any(re.fullmatch(r" *\d+ s  the pinned packages: 2 packages fetched", line) for line in lines), told
    assert re.fullmatch(r" *\d+ s  ready", lines[-1])
    assert "WARNING" not in told and "ignored" not in told
    assert setup() == (0, ""), "once is enough"


def test_a_set_up_for_gpus_stays_one_where_the_variable_is_not_set(setup, tmp_path):
    (tmp_path / "requirements" / "gpu.txt").write_text("alpha==1\n")
    code, told = setup(REDRAFT_REQUIREMENTS="gpu")
    assert code == 0 and "from requirements/gpu.txt" in told, told
    assert setup() == (0, ""), "what is there is kept"
    (tmp_path / "pyproject.toml").write_text("# of another state")
    assert "from requirements/gpu.txt" in setup()[1], "and renewed as what it was"
    assert "from requirements/cpu.txt" in setup(REDRAFT_REQUIREMENTS="cpu")[1]


def test_a_set_up_that_fails_shows_what_pip_said_of_it(setup):
    code, told = setup(PIP_FAILS="1")
    assert code == 1 and told.splitlines()[-1] == "ERROR: No matching distribution found for beta==2"
