"""Methods are made of parts: the page about them shows parts that work, and every part is small and can be replaced."""

from __future__ import annotations

import ast
import re
import sys

import numpy as np
import pytest
import yaml
from support.places import ROOT
from support.rollout_house import House

from actors import environments, rollouts
from actors.config import DataSettings, EnvironmentSettings
from learner import credits, objectives
from learner.batches.batch import prepare
from learner.config import LearnerSettings
from protocols.turns import Group
from redraft import recipe as recipes

PAGE = (ROOT / "docs" / "methods.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
SETTINGS = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL).group(1))
NAMED = {**rollouts.NAMES, **credits.NAMES, **objectives.NAMES, **environments.NAMES}
METHODS = {"rise", "reflexion", "introspect", "star", "agent_r", "agentr", "rrr"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


def test_the_parts_on_the_page_work_as_they_stand(mine):
    quickstart = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    quickstart["rollout"] = SETTINGS["rollout"]
    quickstart["learner"] |= SETTINGS["learner"]
    recipe = recipes.build(quickstart)
    task = environments.tasks(recipe.environment, DataSettings(), "train")[0]
    make = EnvironmentSettings(name="signs", feedback="residual")
    right = task["digits"][0] + "".join(
        sign + digit for sign, digit in zip(_signs(task), task["digits"][1:], strict=True)
    )
    answers = iter(["nonsense", right])
    house = House(recipe.rollout, lambda prompt: next(answers), lambda: environments.make(make), task)
    assert [turn.reward for turn in house.turns] == [0.0, 1.0] and [turn.parent for turn in house.turns] == [-1, 0]
    group = Group(bytes(16), 0, tuple(house.turns))
    (worth,) = credits.credit([group], recipe.learner.credit)
    assert worth.tolist() == [0.0, 2.0]
    batch = prepare([group], 0, recipe.learner)
    assert batch.report.sequences >= 1 and objectives.make(recipe.learner.objective).weigh(np.array([-2.0])) == 2.0


def _signs(task: dict) -> tuple[str, ...]:
    from actors.environments.signs_tasks import targets_of

    return targets_of(task["digits"])[task["target"]][0]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_part_is_a_file_that_can_be_read_at_one_sitting(name):
    path = ROOT / (NAMED[name].partition(":")[0].replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) < 150


def test_every_part_and_every_recipe_is_on_the_page():
    for name in (*rollouts.NAMES, *credits.NAMES, *objectives.NAMES, *environments.NAMES):
        assert f"`{name}`" in PAGE or f"`{name}," in PAGE, name
    linked = set(re.findall(r"\.\./recipes/([\w-]+)\.yaml", PAGE))
    assert linked == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    assert recipes.load(path).name == path.stem


def test_no_name_in_the_code_of_the_system_says_which_method_runs():
    """Rollouts and credits may; recipes, docstrings and comments say where something comes from."""
    found = []
    for package in ("protocols", "actors", "replay", "learner", "redraft"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name in ("rollouts", "credits"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                names = [getattr(node, key, None) for key in ("id", "name", "attr", "arg")]
                words = {word for name in names if isinstance(name, str) for word in [name.lower()]}
                found += [f"{path.relative_to(ROOT)}: {word}" for word in words & METHODS]
    assert not found


def test_learner_settings_name_the_known_parts_when_one_is_unknown():
    with pytest.raises(ValueError, match="group, turnwise, raw, reflection, trajectory"):
        LearnerSettings(credit={"name": "chess"})
