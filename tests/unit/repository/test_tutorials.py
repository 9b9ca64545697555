"""What the tutorials have people write works as it stands: data, environment, credit, recipes, commands."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.places import ROOT
from support.rollout_house import House

from actors import environments, mixture
from learner.credits import credit
from protocols import own_code
from protocols.turns import MIXED_FROM, Group, Role, Turn
from redraft import recipe as recipes
from redraft.cli.main import app
from redraft.models.make import build_tokenizer
from redraft.recipe import Recipe

TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = [
    *sorted(TUTORIALS.glob("*.md")),
    *(ROOT / "docs" / name for name in ("install.md", "comparing.md", "your-data.md")),
]


class Tutorial:
    """A page's module, saved in `folder` under the name that its recipe gives, and that recipe."""

    def __init__(self, page: str, folder: Path):
        text = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8")
        self.code, *self.more = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        self.values, *self.variants = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
        self.module = re.search(r"Save (?:it|this) as `(\w+)\.py`", text)[1]
        (folder / f"{self.module}.py").write_text(self.code)

    @property
    def recipe(self) -> Recipe:
        return recipes.build(self.values)


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # for what is tried by hand
    own_code.install({})
    before = set(sys.modules)
    yield lambda page: Tutorial(page, tmp_path)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def test_your_environment_is_played_to_its_end(tutorial, capsys):
    page = tutorial("my-environment")
    recipe = page.recipe
    train, test = (environments.tasks(recipe.environment, recipe.data, split) for split in ("train", "test"))
    assert len(train) + len(test) == 100 and not {task["id"] for task in train} & {task["id"] for task in test}

    def halving(prompt: str) -> str:
        low, high = 1, 100
        for guess, said in re.findall(r"(\d+)</s>\D*?It is (higher|lower)", prompt):
            low, high = (int(guess) + 1, high) if said == "higher" else (low, int(guess) - 1)
        return str((low + high) // 2)

    tokenizer = build_tokenizer("bytes", 4096)
    end = tokenizer.eos_token
    house = House(
        recipe.rollout.model_copy(update={"episodes": 1}),
        lambda prompt: halving(prompt.replace(end, "</s>")),
        lambda: environments.make(recipe.environment),
        train[41],
        tokenizer=tokenizer,
    )
    assert house.turns[-1].reward == 1 and house.turns[-1].terminated and 2 < len(house.turns) <= 7
    [several] = page.variants
    mixed = recipes.build({key: value for key, value in page.values.items() if key != "environment"} | several)
    labels = {task[MIXED_FROM] for task in mixture.tasks(mixed.mixture, "test")}
    assert labels == {one.label for one in mixed.mixture} == {"halves.py-Halves", "crafting"}
    [by_hand] = page.more
    (Path(sys.path[0]) / "by_hand.py").write_text(by_hand)
    runpy.run_path(str(Path(sys.path[0]) / "by_hand.py"))
    assert "higher" in capsys.readouterr().out


def test_your_method_trains_the_shortest_right_answer_alone(tutorial):
    recipe = tutorial("my-method").recipe
    lengths, rewards = (9, 4, 6, 3), (1.0, 1.0, 1.0, 0.0)
    turns = []
    for number, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        ids = np.ones(length, np.int32)
        facts = {"episode": number, "index": 0, "reward": reward}
        turns.append(Turn(bytes(16), 0, number, -1, ids, ids, ids.astype(np.float32), ((0, 0),), Role.ATTEMPT, **facts))
    (worth,) = credit([Group(bytes(16), 0, tuple(turns))], recipe.learner.credit)
    assert np.isnan(worth[[0, 2, 3]]).all() and worth[1] == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_the_pages_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"bin/redraft ([a-z]+)", text)) <= commands
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z-]+)(?=`|\n| {2,})", text)) <= set(targets)


def test_the_recipe_commands_of_one_gpu_are_taken():
    text = (TUTORIALS / "one-gpu.md").read_text(encoding="utf-8")
    found = re.findall(r"redraft train (\S+)((?:.*\\\n)*.*)\n", text)
    assert len(found) == 2
    for path, arguments in found:
        overrides = re.findall(r"'([^']+)'|(\S+=\S+)", arguments.replace("\\\n", " "))
        recipes.load(ROOT / path, [quoted or plain for quoted, plain in overrides])
