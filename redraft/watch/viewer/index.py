"""The index of a run's record: which groups there are and where, by the heads of their lines.

Turns are read when a group is asked for. A refresh reads only what was added since the last one; a line is there once
its end is written. A resumed run plays steps again: lines of an earlier incarnation are left out from the step on at
which a later one has lines.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from learner.transcripts.store import FOLDER, TRAINING
from learner.transcripts.transcript import BODY
from protocols.weights import INCARNATION

END = b"]}"
FILTERS: dict[str, Callable[[dict], bool]] = {
    "all": lambda head: True,
    "fixed": lambda head: head["fixed"] > 0,
    "broken": lambda head: head["broken"] > 0,
    "errors": lambda head: head["errors"] > 0,
    "longest": lambda head: True,  # an order, by tokens
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `key` is "FILE:OFFSET" without the suffix, `size` its bytes."""

    key: str
    file: str
    offset: int
    size: int
    head: dict

    @property
    def step(self) -> int:
        return self.head["step"]

    @property
    def trained(self) -> bool:
        return self.head["label"] == TRAINING


@dataclass(slots=True)
class Read:
    """What is known of one file: which one it was, how far it was read, the entries in it."""

    inode: int
    end: int = 0
    entries: list[Entry] = field(default_factory=list)


class Index:
    """The groups that `run_dir` keeps; safe to use from several threads."""

    def __init__(self, run_dir: Path):
        self._folder = run_dir / FOLDER
        self._files: dict[str, Read] = {}
        self._newest: list[Entry] = []
        self._by_key: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """All groups, newest first: by step, an evaluation before the training that led to it."""
        with self._lock:
            if self._refresh():
                self._order()
            return self._newest

    def find(
        self, kind: str = "all", label: str = "", first: int = 0, last: float = math.inf, task: str = ""
    ) -> list[Entry]:
        """Groups of one of FILTERS, with this label ("" = any), of steps first..last, whose task holds this text."""
        fits, wanted = FILTERS[kind], task.lower()
        found = [
            entry
            for entry in self.entries()
            if fits(entry.head)
            and (not label or entry.head["label"] == label)
            and first <= entry.step <= last
            and wanted in entry.head["task"].lower()
        ]
        return sorted(found, key=lambda entry: -entry.head["tokens"]) if kind == "longest" else found

    def labels(self) -> list[str]:
        return sorted({entry.head["label"] for entry in self.entries()})

    def group(self, key: str) -> dict | None:
        """The whole line; None where it is gone, or not whole."""
        self.entries()
        entry = self._by_key.get(key)
        if entry is None:
            return None
        try:
            with open(self._folder / entry.file, "rb") as file:
                file.seek(entry.offset)
                return _decoded(file.read(entry.size))
        except OSError:  # the oldest segments go
            return None

    def _refresh(self) -> bool:
        """Reads what is new; whether anything is."""
        there = {path.name: path for path in sorted(self._folder.glob("*.jsonl"))}
        gone = self._files.keys() - there.keys()
        for name in gone:
            del self._files[name]
        return any([self._read(path) for path in there.values()]) or bool(gone)

    def _read(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                known = self._files.get(path.name)
                stat = path.stat()
                if known is None or known.inode != stat.st_ino:
                    known = self._files[path.name] = Read(stat.st_ino)
                if stat.st_size <= known.end:
                    return False
                file.seek(known.end)
                data = file.read()
        except OSError:
            return False
        whole = data.rfind(b"\n") + 1
        offset = known.end
        for line in data[:whole].split(b"\n")[:-1]:
            head = _head(line)
            if head is not None:
                known.entries.append(Entry(f"{path.stem}:{offset}", path.name, offset, len(line), head))
            offset += len(line) + 1
        known.end += whole
        return whole > 0

    def _order(self) -> None:
        """Leaves out what was played again, and sorts the rest."""
        kept: list[Entry] = []
        incarnation, floor, later = (
            math.inf,
            math.inf,
            math.inf,
        )  # `floor`: the first step of this incarnation, `later`: of later ones
        for name in sorted(self._files, reverse=True):
            for entry in reversed(self._files[name].entries):
                if not entry.trained:
                    kept.append(entry)
                    continue
                if entry.head["version"] // INCARNATION != incarnation:
                    incarnation, later = entry.head["version"] // INCARNATION, min(later, floor)
                if entry.step < later:
                    kept.append(entry)
                    floor = min(floor, entry.step)
        kept.sort(key=lambda entry: (-entry.step, entry.trained))
        self._newest, self._by_key = kept, {entry.key: entry for entry in kept}


def _head(line: bytes) -> dict | None:
    """The head of a line; None where it is none, or was cut."""
    start = line.find(BODY)
    if start < 0 or not line.endswith(END):
        return None
    return _decoded(line[:start] + b"}")


def _decoded(text: bytes) -> dict | None:
    try:
        return json.loads(text, parse_constant=lambda name: None)  # JSON has no NaN
    except ValueError:
        return None
