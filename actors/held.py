"""An episode whose turns are held back until it has ended, for what is known only then: which of its steps were good,
and the log-probs of its tokens after another prompt than they were sampled after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.engines import Completion
from actors.group import GroupWriter
from protocols.turns import ASIDES, INTERNALISED, LOGPROBS, Role

Rescore = Callable[[np.ndarray], Awaitable["tuple[np.ndarray, int] | None"]]
"""Log-probs float32[n - 1] of int32[n] ids but the first, and the version of the weights that gave them; None where
that was given up."""


@dataclass(slots=True)
class _Row:
    role: Role
    parent: int
    prompt: np.ndarray
    completion: Completion
    facts: dict[str, Any]


class HeldEpisode:
    """Stands in for the writer of a group while one episode is played."""

    def __init__(self, writer: GroupWriter):
        self._writer = writer
        self._rows: list[_Row] = []

    def turn(self, role: Role, parent: int, prompt: np.ndarray, completion: Completion, **facts: Any) -> int:
        """As GroupWriter.turn; the number is that within this episode."""
        if not -1 <= parent < len(self._rows):
            raise ValueError("a turn of an episode that is held back follows one that is not there")
        self._rows.append(_Row(role, parent, prompt, completion, facts))
        return len(self._rows) - 1

    @property
    def worth(self) -> float:
        """The return so far."""
        own = (row for row in self._rows if row.role not in ASIDES and INTERNALISED not in row.facts.get("extra", {}))
        return sum(row.facts["reward"] for row in own)

    def flag(self, good: Sequence[bool]) -> None:
        """Says of each step, by its number, whether it was good."""
        for row in self._rows:
            if row.facts["index"] < len(good):
                row.facts["extra"] = row.facts.get("extra", {}) | {"good": good[row.facts["index"]]}

    async def rescore(self, score: Rescore) -> bool:
        """Replaces log-probs of sampled tokens by those after the prompts that are written here, all by one version,
        which the turns then say they are of. False where scoring was given up. For an episode on one path."""
        if not self._rows:
            return True
        if any(row.parent != place - 1 for place, row in enumerate(self._rows)):
            raise ValueError("an episode of several paths cannot be scored as one")
        ids = np.concatenate([part for row in self._rows for part in (row.prompt, row.completion.ids)])
        found = await score(ids)
        if found is None:
            return False
        logprobs, version = found
        end = 0
        for row in self._rows:
            start = end + len(row.prompt)
            end = start + len(row.completion.ids)
            authored = np.isnan(row.completion.logprobs)
            given = np.where(authored, np.nan, logprobs[start - 1 : end - 1]).astype(LOGPROBS)
            versions = row.completion.versions and ((0, version),)
            row.completion = replace(row.completion, logprobs=given, versions=versions)
        return True

    def write(self) -> None:
        """Hands the turns to the group, in their order."""
        numbers: dict[int, int] = {-1: -1}  # in the group, by those within this episode
        for place, row in enumerate(self._rows):
            after = {"after": numbers[row.facts["after"]]} if "after" in row.facts else {}
            parent = numbers[row.parent]
            numbers[place] = self._writer.turn(row.role, parent, row.prompt, row.completion, **row.facts | after)
