"""Code of the user's own: found by its file, sent to other processes, and no harm to what has the same name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

from protocols import own_code
from protocols.errors import SettingError
from protocols.named import load

HIDING = 'raise SystemExit("a file of the user stands in the place of a package")\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working directory; nothing is installed before or afterwards."""
    monkeypatch.chdir(tmp_path)
    own_code.install({})
    yield tmp_path
    own_code.install({})


def test_a_file_is_loaded_with_what_lies_beside_it_and_sys_path_stays_as_it_is(folder: Path):
    (folder / "words.py").write_text("GOOD = {'a'}\n")
    (folder / "mine.py").write_text("from words import GOOD\ndef score(text):\n    return float(text in GOOD)\n")
    before = list(sys.path)
    assert load("reward", "mine.py:score", {})("a") == 1 and load("reward", "./mine.py:score", {})("b") == 0
    assert sys.path == before and "words" not in sys.modules and "mine" not in sys.modules


def test_where_the_files_are_not_what_was_sent_is_loaded(folder: Path):
    (folder / "words.py").write_text("GOOD = 1\n")
    (folder / "mine.py").write_text("import words\nvalue = words.GOOD\n")
    sent = own_code.read({"environment": {"options": {"reward": ["mine.py:value"]}}})
    assert sorted(sent) == ["mine.py", "words.py"]
    for file in ("mine.py", "words.py"):
        (folder / file).unlink()
    own_code.install(sent)
    assert own_code.load("mine.py:value") == 1


def test_a_run_folder_keeps_them_wherever_they_were(folder: Path):
    (folder / "far").mkdir()
    (folder / "here").mkdir()
    (folder / "far" / "mine.py").write_text("import beside\nvalue = beside.value\n")
    (folder / "far" / "beside.py").write_text("value = 2\n")
    os.chdir(folder / "here")
    values = ["../far/mine.py:value", f"{folder}/far/mine.py:value"]
    found, run = own_code.read(values), folder / "run"
    own_code.keep(found, run)
    assert own_code.kept(values, run) == found and len(found) == 4
    assert all(file.is_relative_to(run / own_code.FOLDER) for file in run.rglob("*.py"))


@pytest.mark.parametrize(
    ("source", "said"),
    [(None, "there is no file"), ("import nothing_like_it", "nothing_like_it"), ("raise SystemExit(3)", "3")],
)
def test_what_cannot_be_loaded_is_an_error_in_one_line(folder: Path, source: str | None, said: str):
    if source is not None:
        (folder / "mine.py").write_text(source)
    with pytest.raises(SettingError, match=rf"reward: 'mine\.py:score' cannot be imported: .*{said}") as caught:
        load("reward", "mine.py:score", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", ["", "."], ids=["started with -m", "PYTHONPATH=."])
def test_a_file_with_the_name_of_a_package_beside_the_recipe_harms_nothing(folder: Path, before: str):
    for name in ("replay", "learner", "actors", "protocols"):
        (folder / f"{name}.py").write_text(HIDING)
    path = os.pathsep.join(filter(None, (before, str(ROOT))))
    command = [sys.executable, "-m", "redraft", "train", str(ROOT / "recipes" / "quickstart.yaml"), "--dry-run"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("name: quickstart"), done.stderr
