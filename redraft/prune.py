"""Removing run folders: none that a command has or reads, and none that another run stands on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from protocols.errors import SettingError
from redraft import records
from redraft import run as runs
from redraft.owner import Owner

REMOVED = ".removed."


def check(folders: Sequence[Path], everything: Sequence[Path]) -> None:
    """Raises SettingError where one of the folders, which all are to go, is what a run of `everything` that stays
    stands on."""
    going = {folder.resolve() for folder in folders}
    for run in everything:
        if run.resolve() in going:
            continue
        for used in needs(run):
            if stands := next((folder for folder in going if used.is_relative_to(folder)), None):
                problem = f"the run {run.name} stands on {stands.name}: it uses {used}"
                raise SettingError("RUN", problem, f"Remove {run.name} first, or both at once")


def remove(folder: Path) -> None:
    """Removes it, so that it is whole or gone. Raises SettingError where a command has it, or reads it."""
    owner = Owner(folder, "runs prune")
    try:
        owner.take(to_rename=True)
        gone = folder.with_name(REMOVED + folder.name)
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    finally:
        owner.release()
    shutil.rmtree(gone)


def needs(run: Path) -> list[Path]:
    """Where the start model of a run lies, where that is not in its own folder, and what else its recipe names."""
    facts, recipe = records.json_object(run / "run.json"), records.recipe(run)
    own = (run / runs.MODEL).is_dir()
    named = [] if own else [facts.get("model")]
    model = recipe.get("model")
    if own and isinstance(model, dict):
        recipe = recipe | {"model": {key: value for key, value in model.items() if key != "path"}}
    paths = [Path(text).expanduser().resolve() for text in (*named, *_texts(recipe)) if _is_path(text)]
    return [path for path in paths if path.exists() and not path.is_relative_to(run.resolve())]


def _texts(value: object) -> list[str]:
    """All texts in what a recipe holds."""
    if isinstance(value, str):
        return [value]
    several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in several for text in _texts(one)]


def _is_path(text: object) -> TypeGuard[str]:
    return isinstance(text, str) and "/" in text and len(text) < 4096 and "\0" not in text and "\n" not in text
