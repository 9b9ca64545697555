"""The tasks of `textcraft`: which commands a goal needs, read from recipes and goals in a data folder.

Nothing here is drawn: what is to look random is ordered by a hash that starts with the goal, so a task is the same on
every machine, in whatever order files or sets are listed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actors.environments.files import held_out
from protocols.errors import SettingError

RECIPES, GOALS = "recipes_minecraft_1.16.json", "goals_depth_sorted_listing.json"
KINDS = ("minecraft:crafting_shaped", "minecraft:crafting_shapeless")
DISTRACTORS = 8  # commands in a task that its goal does not need
TRUNKS = "acacia log, birch log, crimson stem, dark oak log, jungle log, oak log, spruce log, warped stem".split(", ")
RAW_TAGS = {
    **{f"{trunk}s": [trunk] for trunk in TRUNKS},
    "logs": TRUNKS,
    "coals": ["charcoal", "coal"],
    "soul fire base blocks": ["soul sand", "soul soil"],
    "stone crafting materials": ["blackstone", "cobblestone"],
    "stone tool materials": ["blackstone", "cobblestone"],
    "wooden slabs": [trunk.rpartition(" ")[0] + " slab" for trunk in TRUNKS],
}
"""Tags that no recipe group is named after. The goals' depths take them as raw, so their items can be had."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`count` of `output` from `needs`, name -> count, where a name is an item or a tag."""

    output: str
    count: int
    needs: dict[str, int]

    def __str__(self) -> str:
        return f"craft {self.count} {self.output} using " + ", ".join(f"{n} {name}" for name, n in self.needs.items())


class Book:
    """All recipes for goals. `depths` is goal -> crafting depth, from 1; what is no goal is raw, of depth 0.

    The recipe files name tags but not their items. A tag that is the name of a recipe group (planks, wool) holds what
    that group makes; others are in RAW_TAGS. Where a recipe lists alternatives, the first one counts.
    """

    def __init__(self, folder: Path):
        listed = json.loads((folder / RECIPES).read_text())
        self.depths = {_name(goal): depth for goal, depth in json.loads((folder / GOALS).read_text())}
        rows = [listed[file] for file in sorted(listed) if listed[file]["type"] in KINDS]
        groups: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            groups[row.get("group", "").replace("_", " ")].add(_name(row["result"]["item"]))
        self.tags = {tag: sorted(groups[tag]) if tag in groups else RAW_TAGS[tag] for tag in _tags(rows)}
        self.recipes = [recipe for recipe in map(self._recipe, rows) if recipe.output in self.depths]

    def task(self, goal: str) -> dict:
        """The goal's task, see textcraft.py. Raises ValueError where no recipe has the goal's depth."""
        order = partial(_order, goal)
        needed = self._needed(goal, order)
        listed = needed + self._distractors(needed, order)
        made = {recipe.output for recipe in listed}
        names = {name for recipe in listed for name in recipe.needs}
        raw = {item for name in names if self.depth(name) == 0 for item in self.tags.get(name, [name])} - made
        return {
            "id": f"textcraft/{goal.replace(' ', '_')}",
            "goal": goal,
            "level": self.depths[goal] - 1,
            "commands": [[r.output, r.count, r.needs] for r in sorted(listed, key=lambda r: order(str(r)))],
            "tags": {
                tag: [item for item in self.tags[tag] if item in raw | made] for tag in sorted(names & set(self.tags))
            },
            "raw": sorted(raw),
        }

    def depth(self, name: str) -> int:
        """The crafting depth of an item, or of the shallowest item of a tag; 0 for raw ones."""
        if name in self.tags:
            return 0 if name in RAW_TAGS else min(self.depths.get(item, 0) for item in self.tags[name])
        return self.depths.get(name, 0)

    def _needed(self, goal: str, order) -> list[Recipe]:
        found, names = {}, [goal]
        for name in names:  # which grows meanwhile
            item = min(self.tags.get(name, [name]), key=lambda item: (self.depth(item), order(item)))
            if item not in found:
                found[item] = self._shallowest(item)
                names += filter(self.depth, found[item].needs)
        return list(found.values())

    def _shallowest(self, output: str) -> Recipe:
        for recipe in self.recipes:
            if recipe.output == output and max(map(self.depth, recipe.needs)) + 1 == self.depths[output]:
                return recipe
        raise ValueError(f"no recipe makes {output} at depth {self.depths[output]}")

    def _distractors(self, needed: list[Recipe], order) -> list[Recipe]:
        """Other commands: first those that use something that a needed one uses or makes."""
        touched = {name for recipe in needed for name in (recipe.output, *recipe.needs)}
        others = (recipe for recipe in self.recipes if recipe not in needed)
        return sorted(others, key=lambda r: (touched.isdisjoint(r.needs), order(str(r))))[:DISTRACTORS]

    def _recipe(self, row: dict) -> Recipe:
        cells = "".join(row.get("pattern", [])).replace(" ", "")
        names = [_ingredient(part) for part in row.get("ingredients") or [row["key"][cell] for cell in cells]]
        single = {tag: items[0] for tag, items in self.tags.items() if len(items) == 1}
        needs = dict(Counter(single.get(name, name) for name in names))
        return Recipe(_name(row["result"]["item"]), row["result"].get("count", 1), needs)


def read(path: str | None, split: str) -> list[dict]:
    """The tasks of a split, a fifth of all for testing, ordered by hash, so that the first n are a fair sample.

    Raises SettingError where `path` is no folder with both files.
    """
    cure = f"Name a folder with {RECIPES} and {GOALS}"
    if path is None:
        raise SettingError("data.path", "textcraft needs its recipes", cure)
    try:
        book = Book(Path(path))
        goals = sorted(book.depths, key=partial(_order, "textcraft"))
        return [book.task(goal) for goal in goals if held_out(goal) == (split == "test")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SettingError("data.path", f"{path!r} cannot be used: {type(error).__name__}: {error}", cure) from error


def _name(item: str) -> str:
    return item.removeprefix("minecraft:").replace("_", " ")


def _ingredient(part: dict | list) -> str:
    first = part[0] if isinstance(part, list) else part
    return _name(first.get("item") or first["tag"])


def _tags(rows: list[dict]) -> set[str]:
    parts = [part for row in rows for part in (*row.get("key", {}).values(), *row.get("ingredients", []))]
    return {_ingredient(part) for part in parts if isinstance(part, dict) and "tag" in part}


def _order(goal: str, text: str) -> bytes:
    return hashlib.blake2b(f"{goal}: {text}".encode()).digest()
