"""What editors and readers are told about settings is what the settings say: the schema, the reference, the words."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from support.places import RECIPES, ROOT
from support.recipe_keys import KEYS

from redraft import recipe as recipes
from tools import reference

DOCS = ROOT / "docs"
SCHEMA = json.loads((DOCS / "recipe.schema.json").read_text())
WRITTEN = [*sorted(RECIPES.glob("*.yaml")), *sorted((ROOT / "deploy").rglob("recipe.yaml"))]


def wrong(values: dict) -> bool:
    return not jsonschema.Draft202012Validator(SCHEMA).is_valid(values)


def test_schema_and_reference_are_what_the_settings_say():
    assert SCHEMA == reference.schema(), "run python -m tools.reference"
    assert (DOCS / "reference.md").read_text() == reference.page(), "run python -m tools.reference"


def test_every_setting_says_what_it_is_for():
    silent = []
    for name, model in [("Recipe", SCHEMA), *SCHEMA["$defs"].items()]:
        for key, field in model["properties"].items():
            section = SCHEMA["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            told = field.get("description") or section.get("description") or "const" in field
            if not told and f"`{key}`" not in model.get("description", ""):
                silent.append(f"{name}.{key}")
    assert not silent


def test_links_within_the_reference_lead_to_its_sections():
    page = (DOCS / "reference.md").read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings) and set(re.findall(r"\(#([^)]*)\)", page)) <= anchors


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_editor_finds_the_schema_from_each_recipe_and_has_nothing_against_it(path: Path):
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named and Path(os.path.normpath(path.parent / named[1])) == DOCS / "recipe.schema.json"
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


def test_the_schema_takes_what_a_run_writes_and_refuses_what_a_run_refuses():
    values = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    assert not wrong(yaml.safe_load(recipes.build(values).dump()))
    assert not wrong(values | {"rollout": {"episodes": 8}}), "the first kind needs no name"
    assert not wrong(values | {"rollout": {"name": "mine:play", "options": {"a": 1}}})
    for key, value in {
        "rollout": {"name": "retry", "truns": 3},
        "sampling": {"temperature": -1},
        "environment": {"feedback": "blank"},
        "steps": "many",
        "nonsense": 1,
    }.items():
        assert wrong(values | {key: value}), key


def test_each_key_that_the_page_of_words_names_exists():
    page = (DOCS / "your-words.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \|$", page, re.MULTILINE)
    named = {key for _, ours, _ in rows for key in re.findall(r"`([a-z_.]+)`", ours)}
    assert len(rows) > 40 and len(named) > 30
    assert not named - KEYS


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_each_key_that_a_page_sets_on_a_command_line_exists(page: Path):
    assert not set(re.findall(r"[\s'`]((?:[a-z_]+\.)+[a-z_]+)=", page.read_text())) - KEYS
