"""A run keeps the user's own parts: what looks at it later plays with them, and going on says what has changed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from protocols import own_code
from redraft import recipe as recipes
from redraft import run as runs

VALUES = {
    "name": "mine",
    "steps": 3,
    "rollout": {"name": "attempt", "episodes": 2},
    "model": {"path": "model"},
    "environment": {"name": "rows", "options": {"reward": "mine.py:score"}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    own_code.install({})
    yield tmp_path
    own_code.install({})


def test_what_looks_at_a_run_loads_its_code_as_it_was_and_a_resume_says_what_is_new(folder: Path, caplog):
    mine = folder / "mine.py"
    mine.write_text("score = 1\n")
    recipe = recipes.build(VALUES)
    with runs.owned(recipe, None, resume=False, again=False) as owner:
        run = runs.create(recipe, "model", owner)
    mine.write_text("score = 2\n")
    recipes.reload(run.folder, (), "chat", ())
    assert own_code.load("mine.py:score") == 1
    with runs.owned(recipe, None, resume=True, again=False) as owner, caplog.at_level(logging.WARNING):
        runs.create(recipe, "model", owner, resume=True)
    assert "mine.py is not what the run began with" in caplog.text
    assert runs.code(run.folder, recipe) == {"mine.py": "score = 2\n"}
    mine.unlink()
    assert runs.code(run.folder, recipe) == {"mine.py": "score = 2\n"}
