"""A pool of experience: what earlier episodes have shown, a JSON line each, and which of it a question calls for.

    {"when_to_use": "a goal names several items", "content": "Look for all of them first.", "task": "the question"}

What is found shares words with the question, by BM25 over `when_to_use` and `task`.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.distinct import Distinct, words
from actors.door import EpisodeFailure, text
from actors.episode_config import EXPERIENCE, ExperienceSettings
from protocols.errors import SettingError

SETTING = "rollout.experience.path"
FIELDS = ("when_to_use", "content", "task")
LONGEST = 2000  # characters of one experience


def wrong(found: object) -> str:
    """What is wrong with an experience, in words that follow its name; "" where nothing is."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in FIELDS):
        return f"is no map with texts {', '.join(FIELDS)}"
    if not found["content"].strip():
        return "has no content"
    if len(found["when_to_use"]) + len(found["content"]) > LONGEST:
        return f"is longer than {LONGEST} characters"
    try:
        for key in FIELDS:
            text("an experience", found[key])
    except EpisodeFailure as failure:
        return str(failure)
    return ""


def read(path: str | Path) -> list[dict]:
    """The experiences of a file. Raises SettingError."""
    cure = "Write it with `redraft experience RECIPE FILE`"
    try:
        lines = [line for line in Path(path).read_text("utf-8-sig").split("\n") if line.strip()]
        found = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise SettingError(SETTING, f"{path} cannot be read: {error}", cure) from None
    for number, one in enumerate(found, 1):
        if problem := wrong(one):
            raise SettingError(SETTING, f"line {number} of {path} {problem}", cure)
    if not any(words(_about(one)) for one in found):
        raise SettingError(SETTING, f"{path} holds no experience", cure)
    return found


class Pool:
    """The experiences of a recipe's file. Raises SettingError where it is none."""

    def __init__(self, settings: ExperienceSettings):
        import bm25s

        self._settings = settings
        self._known = read(settings.path)
        self._scorer = bm25s.BM25(method="lucene")
        self._scorer.index([words(_about(one)) for one in self._known], show_progress=False)

    def told(self, question: str) -> str:
        """What stands before the question; "" where no experience has a word in common with it."""
        found = self.find(question)
        if not found:
            return ""
        return self._settings.template.replace(EXPERIENCE, "\n".join(map(line, found)))

    def find(self, question: str) -> list[dict]:
        """At most `top` experiences, the best first, the first of equals."""
        known = self._scorer.get_tokens_ids(words(question))
        if not known:
            return []
        scores = self._scorer.get_scores_from_ids(known)
        best = np.argsort(-scores, kind="stable")[: self._settings.top]
        return [self._known[n] for n in best if scores[n] > 0]


def chosen(settings: ExperienceSettings, episodes: int, seed: int) -> frozenset[int]:
    """Numbers of the episodes of a group that are told."""
    rng = np.random.default_rng([seed, 1])
    return frozenset(rng.permutation(episodes)[: round(episodes * settings.share)].tolist())


def _about(one: dict) -> str:
    return f"{one['when_to_use']}\n{one['task']}"


def line(one: dict) -> str:
    """One experience, as it is told."""
    return f"{one['when_to_use']}: {one['content']}" if one["when_to_use"] else one["content"]


def merged(known: Sequence[dict], new: Sequence[dict]) -> list[dict]:
    """Both, without those that are not valid, and those that say for the same task what an earlier one says."""
    seen, kept = defaultdict(Distinct), []
    for one in [*known, *new]:
        if not wrong(one) and seen[one["task"]].take(words(f"{one['when_to_use']} {one['content']}")):
            kept.append({name: one[name] for name in FIELDS})
    return kept


def write(path: Path, found: Sequence[dict]) -> None:
    """Writes the file whole, or leaves it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="ascii")
    aside.replace(path)
