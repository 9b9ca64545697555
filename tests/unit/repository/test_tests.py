"""The tests are where they are looked for, say what they need, and wait and start processes in one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import processes
from support.places import ROOT
from support.waiting import deadline_s

TESTS = ROOT / "tests"
SUITES = [path for suite in ("unit", "integration", "chaos") for path in sorted((TESTS / suite).rglob("test_*.py"))]
PACKAGES = ("protocols", "actors", "replay", "learner", "redraft", "benchmarks", "examples", "tools")
LIMIT = 500
ONE_WAY = {
    r"\btime\.sleep\(": "support.waiting.until",
    r"(?<!; )\bsubprocess\.Popen\(": "support.processes.start",
    r"os\.environ\.get\(\"CI\"\)": "support.needs",
}
OWN = ("support/processes.py", "support/needs.py", "unit/repository/test_tests.py")
STARTS_RAY = ("ray.init(", "Command(")


def name(path: Path) -> str:
    return str(path.relative_to(TESTS))


def test_unit_tests_lie_where_the_package_lies_that_they_are_about():
    for folder in (TESTS / "unit").rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__" and folder.name != "repository":
            package = folder.relative_to(TESTS / "unit")
            assert package.parts[0] in PACKAGES and (ROOT / package).is_dir(), folder


def test_no_two_files_of_tests_have_the_same_name():
    names = [path.name for path in SUITES]
    assert sorted(names) == sorted(set(names)), "pytest imports them by their bare names"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=name)
def test_a_file_is_small_says_what_it_promises_and_does_things_in_the_one_way(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LIMIT
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(text)), "no docstring"
    if name(path) not in OWN:
        for other, ours in ONE_WAY.items():
            assert not re.search(other, text), f"use {ours}"


@pytest.mark.parametrize("path", [path for path in SUITES if path.name != "test_tests.py"], ids=name)
def test_a_file_that_starts_ray_bears_its_marker(path):
    text = path.read_text()
    assert "pytest.mark.ray" in text or not any(start in text for start in STARTS_RAY)


def test_what_a_test_leaves_ends_with_it_also_where_its_parent_is_gone_and_its_session_is_its_own():
    leaves = "import subprocess as s; print(s.Popen(['sleep', '600'], start_new_session=True, stdout=s.DEVNULL).pid)"
    begun = processes.mark()
    parent = processes.start([sys.executable, "-c", leaves], stdout=subprocess.PIPE)
    left = psutil.Process(int(parent.communicate(timeout=deadline_s(30))[0]))
    assert parent.returncode == 0 and left.is_running()
    processes.end(begun)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
