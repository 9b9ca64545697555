"""What a person or a task names leads to no file outside of the folder that it is a name in."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checked_house import RECIPE
from typer.testing import CliRunner

from protocols.errors import SettingError
from protocols.own_code import keep
from redraft import run as runs
from redraft.cli.runs import app
from redraft.recipe import build

OUTSIDE = (
    "..",
    ".",
    "../away",
    "a/../../away",
    "/tmp/away",
    "runs/away",
    ".hidden",
    "a\nb",
    "a\0b",
    "",
    "-a",
    "a" * 64,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "run.json").write_text('{"id": "a", "model": "m"}')
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_run_cannot_be_named_out_of_the_folder_of_runs(name):
    with pytest.raises(SettingError, match="cannot name a folder"):
        runs.check(build(RECIPE), name, resume=False, again=False)
    with pytest.raises(SettingError, match="name"):
        build(RECIPE | {"name": name})


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_what_is_a_run_here_is_ever_removed(name, here):
    refused = CliRunner().invoke(app, ["prune", "--yes", "--", name])
    assert isinstance(refused.exception, SettingError) and refused.exception.setting == "RUN"
    assert (here / "away" / "run.json").exists()


@pytest.mark.parametrize("named", ["../away/mine.py", "/away/mine.py", "a/../../../../mine.py", "..//..//mine.py"])
def test_code_of_the_users_own_is_kept_inside_of_the_run_folder_wherever_it_came_from(named, here):
    keep({named: "kept = True"}, here / "here" / "run")
    [file] = here.rglob("mine.py")
    assert file.is_relative_to(here / "here" / "run") and ".." not in file.relative_to(here).parts
