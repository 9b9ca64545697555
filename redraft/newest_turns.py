"""The newest turns of a run as text, from the record in its folder (RUN/turns), while it is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 1 << 20  # of the newest file, that are looked at
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
class Group:
    """`step` and `version` are None where the record does not say them."""

    step: int | None
    version: int | None
    task: str
    turns: tuple[Told, ...]


class NewestTurns:
    """Reads the end of the newest file when it has changed. What is missing, half written or of another form is left
    out; without a tokenizer in the model's folder, texts are token ids."""

    def __init__(self, run_dir: Path, model: Path):
        self._folder, self._model = run_dir / "turns", model
        self._spell: Callable[[Sequence[int]], str] | None = None
        self._seen: tuple = ()
        self._groups: list[Group] = []

    def read(self) -> list[Group]:
        """The newest groups, the newest first."""
        try:
            newest = max(self._folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
            if newest is None:
                return []
            stat = newest.stat()
            if self._seen != (newest, stat.st_size, stat.st_mtime_ns):
                lines = _tail(newest, stat.st_size)
                self._groups = list(self._told(reversed(lines)))
                self._seen = (newest, stat.st_size, stat.st_mtime_ns)
        except OSError:  # the oldest files go while we look
            pass
        return self._groups

    def _told(self, lines: Iterator[bytes]) -> Iterator[Group]:
        self._spell = self._spell or _spelling(self._model / "tokenizer.json")
        found = 0
        for line in lines:
            try:
                group = json.loads(line)
                turns = tuple(self._turn(turn) for turn in group["turns"][:TURNS])
                yield Group(group.get("step"), group.get("version"), str(group.get("task", "")), turns)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            found += 1
            if found == GROUPS:
                return

    def _turn(self, turn: dict) -> Told:
        said, text = (_short(self._spell(turn.get(key) or [])) for key in ("prompt", "response"))
        return Told(str(turn.get("role", "turn")), int(turn.get("index", 0)), said, text, turn.get("reward"))


def _tail(path: Path, size: int) -> list[bytes]:
    """The whole lines at the end of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).split(b"\n")
    return lines[:-1] if size <= TAIL_BYTES else lines[1:-1]


def _spelling(file: Path) -> Callable[[Sequence[int]], str]:
    """How this tokenizer spells ids; it loads in milliseconds, without transformers."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises no kind of its own, also for a file that is missing
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + " ... " + text[-LONGEST // 2 :]
