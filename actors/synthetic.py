"""Training tasks that were made, not given: the file of them, and how they are mixed with the environment's own.

A line is a task as its environment plays it, with `query` (its question, for people), `reference` (actions that were
seen to succeed in the environment) and `proved`, without which it is not played.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from actors.config import SyntheticSettings
from protocols.errors import SettingError

SETTING = "data.synthetic.path"
PREFIX = "synthetic/"
CURE = "Write it with `redraft question RECIPE FILE`"


def identity(query: str, reference: Sequence[str]) -> str:
    """The id of a task: of its question and what solves it."""
    told = json.dumps([query, list(reference)]).encode()
    return PREFIX + hashlib.blake2b(told, digest_size=10).hexdigest()


def read(path: str | Path) -> list[dict]:
    """The tasks of a file. Raises SettingError, also where one was not proved."""
    try:
        found = [json.loads(line) for line in Path(path).read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise SettingError(SETTING, f"{path} cannot be read: {error}", CURE) from None
    for number, task in enumerate(found, 1):
        if problem := _wrong(task):
            raise SettingError(SETTING, f"line {number} of {path} {problem}", CURE)
    return found


def mixed(original: Sequence[dict], settings: SyntheticSettings) -> list[dict]:
    """The training tasks of a run whose environment has these. Raises SettingError."""
    found = read(settings.path)[: round(settings.ratio * len(original))]
    if not found:
        raise SettingError("data.synthetic", f"{settings.path} gives no task at ratio {settings.ratio:g}", CURE)
    return [*(original if settings.original else ()), *found]


def _wrong(task: object) -> str:
    if not isinstance(task, dict) or not isinstance(task.get("query"), str) or not task.get("reference"):
        return "is no task with a query and a reference"
    if task.get("id") != identity(task["query"], task["reference"]):
        return "has an id that is not that of its query and reference"
    return "" if task.get("proved") is True else "was never proved: nobody has seen its reference succeed"
