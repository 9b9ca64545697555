"""The newest turns of a run as text, from the record in its folder, while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redraft.logs import printable
from redraft.run import Run
from redraft.watch.viewer.index import Index
from redraft.watch.viewer.words import Words

GROUPS = 6
TURNS = 12  # of a group
LONGEST = 600  # characters of one text


@dataclass(frozen=True, slots=True)
class Told:
    """A turn for people. `said` is what the model was told before it, `text` its response."""

    role: str
    index: int
    said: str
    text: str
    reward: float | None


@dataclass(frozen=True, slots=True)
class NewGroup:
    """`version` is the one that the step published."""

    step: int
    version: int
    task: str
    turns: tuple[Told, ...]


class NewestTurns:
    """Reads what the record has gained since the last look."""

    def __init__(self, run: Run):
        self._index, self._words = Index(run.folder), Words([Path(run.model)])
        self._seen: list[str] = []
        self._groups: list[NewGroup] = []

    def read(self) -> list[NewGroup]:
        """The newest groups, the newest first; none where there is no record."""
        newest = [entry.key for entry in self._index.entries()[:GROUPS]]
        if newest != self._seen:
            lines = [self._index.group(key) for key in newest]
            self._groups = [self._group(line) for line in lines if line is not None]
            self._seen = newest
        return self._groups

    def _group(self, line: dict) -> NewGroup:
        turns = tuple(self._turn(turn) for turn in line["turns"][:TURNS])
        return NewGroup(line["step"], line["version"], printable(line["task"]), turns)

    def _turn(self, turn: dict) -> Told:
        said, text = self._spelled(turn["prompt"]), self._spelled(turn["response"])
        return Told(turn["role"], turn["index"], said, text, turn["reward"])

    def _spelled(self, ids: Sequence[int]) -> str:
        text = printable("".join(word for word in self._words.spell(ids) if word is not None)).strip()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
