"""CONTRIBUTING.md keeps its word: its map is the repository, and its examples work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = PAGE.partition("## A metric")[2]
PACKAGES = ("protocols", "actors", "replay", "learner", "redraft")
COPIED = (*PACKAGES, "docs", "recipes", "deploy", "tests", "tools")
LIMIT_S = 300  # a busy machine; alone it takes a tenth of that


def applied(diff: str, folder: Path) -> None:
    """Changes the files of `folder` as the page says. What is to be changed must be there, once."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        path = folder / name
        for hunk in body.rstrip("\n").split("\n@@\n"):
            lines = hunk.split("\n")
            old, new = ("\n".join(line[1:] for line in lines if line[:1] != left_out) + "\n" for left_out in "+-")
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{name} does not hold, once:\n{old}"
            path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the repository with all examples in it."""
    folder = tmp_path_factory.mktemp("contribution")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for language, title, code in re.findall(r'```(\w+)(?: title="(.+?)")?\n(.*?)```', EXAMPLES, re.DOTALL):
        if language == "diff":
            applied(code, folder)
        else:
            assert not (folder / title).exists()
            (folder / title).write_text(code, encoding="utf-8")
    return folder


def run(folder: Path, *arguments: str) -> None:
    paths = os.pathsep.join((str(folder), str(folder / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]


def test_the_tests_of_the_examples_pass_and_the_pages_agree_with_what_was_added(changed: Path):
    tests = re.findall(r'```python title="(tests/.+?)"', EXAMPLES)
    assert len(tests) == 5
    run(changed, "tools.reference")
    pages = [f"tests/unit/repository/{name}.py" for name in ("test_reference", "test_methods_page")]
    listed = (
        "tests/unit/repository/test_dashboards.py::test_the_page_about_watching_lists_every_metric_as_the_code_does"
    )
    run(changed, "pytest", "-q", "-p", "no:cacheprovider", *tests, *pages, listed)


def test_the_map_has_every_folder_of_the_packages():
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", PAGE, re.MULTILINE))
    inner = {path.parent for name in PACKAGES for path in (ROOT / name).glob("*/__init__.py")}
    assert listed >= {str(path.relative_to(ROOT)) for path in inner} | set(PACKAGES)


def test_every_path_on_the_page_exists():
    text = PAGE.partition("## What a change needs")[0]
    named = {path for path in re.findall(r"`([\w./]+/[\w./]*)`", text) if not path.startswith(".venv")}
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]
