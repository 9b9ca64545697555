"""What docs/environments.md has people write works: recipes that can be built, and a player of the other side."""

from __future__ import annotations

import re
import tomllib

import yaml
from support.places import ROOT

from actors import environments
from redraft import recipe as recipes

PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
PARTS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
BASE = {
    "name": "page",
    "steps": 1,
    "model": {"make": {"tokenizer": "bytes", "max_length": 2048}},
    "rollout": {"name": "act", "turns": 4, "episodes": 2},
    "sampling": {"max_tokens": 16},
    "actors": {"engine": {"max_length": 2048}},
    "learner": {"row_tokens": 2048, "micro_tokens": 4096},
}


def test_every_recipe_of_the_page_is_one_of_an_environment_that_there_is():
    found = [recipes.build(BASE | part).environment.name for part in PARTS]
    assert found == ["reasoning-gym", "textarena", "textarena", "trl", "rows"]


def test_the_judge_of_the_page_is_one():
    asked = recipes.build(BASE | PARTS[-1]).environment
    assert environments.make(asked).longest_s < asked.time_limit_s


def test_the_player_of_the_page_takes_the_first_free_square():
    made: dict = {"__name__": "mine"}
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, made)
    heard = "You are Player 1. Say '[4]' for the center.\n\nCurrent Board: ...\n\nAvailable Moves: '[2]', '[5]'"
    assert made["move"](heard) == "[2]"


def test_extras_that_the_page_names_are_there_to_be_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"-e '\.\[([\w-]+)\]'", PAGE)) == {"reasoning-gym", "textarena"} <= set(extras)
