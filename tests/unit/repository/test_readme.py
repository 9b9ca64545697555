"""The README keeps its word: its environment runs, its recipe is one, its commands and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import pytest
import yaml
from support.places import ROOT

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from redraft import recipe as recipes
from redraft.cli.main import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST_EXAMPLE = 30  # lines


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvironmentSettings:
    """The README's environment, as a recipe names it."""
    [code] = blocks("python")
    (tmp_path / "sorting.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return EnvironmentSettings(name="sorting.py:Sorting")


def test_the_environment_of_the_readme_is_complete_and_short(settings: EnvironmentSettings):
    assert len(blocks("python")[0].splitlines()) <= LONGEST_EXAMPLE
    tasks = {split: environments.tasks(settings, DataSettings(), split) for split in ("train", "test")}
    sets = {split: {"".join(sorted(task["letters"])) for task in found} for split, found in tasks.items()}
    assert sets["train"] and sets["test"] and not sets["train"] & sets["test"]
    assert tasks["train"] == environments.tasks(settings, DataSettings(), "train")


def test_the_environment_of_the_readme_can_be_played(settings: EnvironmentSettings):
    environment = environments.make(settings)
    assert isinstance(environment, gymnasium.Env)
    question, _ = environment.reset(seed=0, options={"task": {"id": "sorting/cadbe", "letters": "cadbe"}})
    assert "cadbe" in question
    for answer, reward, parsed in (("cadbe\n", 0, "cadbe"), ("what?", -1, None), ("abcde", 1, "abcde")):
        observation, scored, terminated, truncated, info = environment.step(answer)
        assert (scored, info["answer"], info["success"]) == (reward, parsed, reward == 1)
        assert ("not the alphabetical order" in observation) == (reward < 1)
        assert not terminated and not truncated


def test_the_recipe_of_the_readme_is_a_recipe():
    [text] = blocks("yaml")
    assert recipes.build(yaml.safe_load(text)).name == "my-first"


def test_the_commands_of_the_readme_are_those_that_exist():
    named = {tuple(words.split()) for words in re.findall(r"`redraft ([a-z0-9]+(?: [a-z]+)?)", _command_rows())}
    commands = {(_name(command),) for command in app.registered_commands}
    for group in app.registered_groups:
        commands |= {(group.name, _name(command)) for command in group.typer_instance.registered_commands}
        commands |= {(group.name,)} if group.typer_instance.info.invoke_without_command is True else set()
    assert named == commands


def _command_rows() -> str:
    """The lines of the table, where `redraft a b|c` names both b and c."""
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| `redraft "))
    choices = re.findall(r"`redraft (\w+) ([\w\\|]*\|[\w\\|]*)", rows)
    split = [f"`redraft {group} {name}" for group, names in choices for name in names.split("\\|")]
    return re.sub(r"`redraft \w+ [\w\\|]*\|[\w\\|]*", "", rows) + "\n".join(split)


def _name(command) -> str:
    return command.name or command.callback.__name__


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (\w+)\s+#", README)) <= set(targets)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing
