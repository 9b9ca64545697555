"""What docs/tools.md has people write works as it stands: tools, recipes, and an environment with tools of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.places import ROOT
from support.rollout_house import House
from support.sums import call
from support.tokenizers import hermes

from actors import environments
from actors.rollout_config import ActSettings
from redraft import recipe as recipes
from redraft.launch import preflight

PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
RECIPES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe of the page, in the folder of its module."""
    [name] = re.findall(r"Save this as `(\w+)\.py`", PAGE)
    (tmp_path / f"{name}.py").write_text(CODE[0])
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return recipes.build(RECIPES[0])


def scripted(recipe):
    """The actors of the recipe with an engine that this test needs not have."""
    engine = recipe.actors.engine.model_copy(update={"name": "scripted"})
    return recipe.actors.model_copy(update={"engine": engine})


def test_the_tool_is_told_called_and_answers(products):
    preflight.check_environment(products.model_copy(update={"actors": scripted(products)}))
    task = environments.tasks(products.environment, products.data, "train")[0]
    said = iter([call("multiply", a=task["a"], b=task["b"]), f"It is {task['a'] * task['b']}."])
    house = House(
        products.rollout.model_copy(update={"episodes": 1}),
        lambda prompt: next(said),
        lambda: environments.make(products.environment),
        task,
        tokenizer=hermes(),
        max_tokens=200,
        tools=products.environment.tools,
    )
    told = [house.tokenizer.decode(turn.prompt) for turn in house.turns]
    assert "Multiplies two numbers." in told[0] and "the second number" in told[0]
    assert f"<tool_response>\n{task['a'] * task['b']}\n</tool_response>" in told[1] and house.success == 1.0


def test_every_recipe_of_the_page_is_one():
    found = [recipes.build(RECIPES[0] | part).environment for part in RECIPES]
    assert [one.name for one in found] == ["products.py:Products", "gsm8k", "openenv"]
    assert [len(one.tools) for one in found] == [1, 2, 0]


def test_an_environment_has_its_state_changed_by_tools_of_its_own():
    made: dict = {"__name__": "shelf"}
    exec(CODE[1], made)
    said = iter([call("take", thing="cup"), call("take", thing="book"), "done"])
    house = House(ActSettings(turns=3), lambda prompt: next(said), made["Shelf"], {"id": "shelf"}, tokenizer=hermes())
    assert '["cup", "book"]' in house.tokenizer.decode(house.turns[2].prompt) and house.success == 1.0
