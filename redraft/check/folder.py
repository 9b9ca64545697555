"""A run folder as the checks read it: its history, its checkpoints, what its spool holds, and every file of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from learner import checkpoint
from protocols.errors import RedraftError
from redraft import records
from redraft.recipe import Recipe
from redraft.run import Run
from replay.disk.reader import SpoolReader
from replay.server.groups import TRAINED, State
from replay.tools.verify import apart, unpacked

BLOCK_BYTES = 1 << 20
LEFT = ".tmp"  # how the name of a file or folder ends that is being written aside, or was when its writer died


class Kept(NamedTuple):
    """What a spool says of one group: `state` in words, "forgotten" where only its mark is left, with the steps that
    used it."""

    group: bytes
    state: str
    reason: str
    uses: tuple[int, ...]


class History:
    """Everything that the checks compare. `written` is metrics.jsonl as it was written, `steps` what the checkpoints
    keep of it; `covered` is the step of the newest checkpoint, 0 before the first, and `state` its state.json.

    Nothing is raised for what is damaged: the checks say it.
    """

    def __init__(self, run: Run, recipe: Recipe):
        self.run, self.recipe = run, recipe
        self.written = records.step_lines(run.folder)
        self.steps = records.steps(self.written)
        newest = checkpoint.newest(run.folder)
        self.covered = 0 if newest is None else checkpoint.step_of(newest)
        self.state = {} if newest is None else records.json_object(newest / "state.json")

    @property
    def last(self) -> int:
        """The last step of what is kept."""
        return self.steps[-1].report.step if self.steps else 0

    @cached_property
    def shards(self) -> list[tuple[Kept, ...] | str]:
        """What each shard of replay knows of its groups, or why it cannot be read."""
        found: list[tuple[Kept, ...] | str] = []
        for shard in range(self.run.shards):
            try:
                found.append(tuple(apart(held, self.run.spool(shard), self.run.id)))
            except RedraftError as error:
                found.append(str(error))
        return found

    @property
    def groups(self) -> Iterator[Kept]:
        """What all shards that can be read know; a group that is in two comes twice."""
        return chain.from_iterable(shard for shard in self.shards if not isinstance(shard, str))

    @cached_property
    def used(self) -> dict[int, set[bytes]]:
        """The groups that each step used."""
        found: dict[int, set[bytes]] = defaultdict(set)
        for kept in self.groups:
            for step in kept.uses:
                found[step].add(kept.group)
        return found

    @cached_property
    def uses(self) -> Counter[int]:
        """How many groups each step used."""
        return Counter(step for kept in self.groups for step in kept.uses)


def held(folder: Path, run_id: str) -> Iterator[Kept]:
    """What a spool says of each group that it knows, of held ones as far as their state can be read. Run it `apart`."""
    with SpoolReader(folder, run_id) as reader:
        for group, packed in reader.groups():
            if (found := unpacked(packed)) is not None:
                yield Kept(group, found.state.name.lower(), found.reason, tuple(found.uses))
        for group, mark in reader.marks():
            reason, *uses = mark.decode(errors="replace").split(" ")
            yield Kept(group, "forgotten", reason, tuple(int(use) for use in uses if use.isdigit()))


def decided(kept: Kept) -> bool:
    """Whether nobody is to play the group again: it was closed, forgotten, or given up."""
    return kept.state != State.OPEN.name.lower()


def trained(kept: Kept) -> bool:
    """Whether it was forgotten because steps had used it."""
    return kept.state == "forgotten" and kept.reason == TRAINED


class Text(NamedTuple):
    """What reading one file found: lines that a death tore (readers leave them out), and what is wrong."""

    torn: int
    problem: str


def texts(run: Run) -> Iterator[tuple[Path, Text]]:
    """Reads every file of the folder but the spool's and the checkpoints' weights, which have checks of their own."""
    for path in sorted(run.folder.rglob("*")):
        place = path.relative_to(run.folder)
        if not path.is_file() or place.parts[0] == "spool" or any(part.endswith(LEFT) for part in place.parts):
            continue
        try:
            yield path, _text(path, weights=place.parts[0] == "checkpoints")
        except OSError as error:
            yield path, Text(0, f"cannot be read: {error.strerror}")


def left_over(run: Run) -> int:
    """How many files and folders were being written when their writer died."""
    return sum(path.name.endswith(LEFT) for path in run.folder.rglob("*"))


def _text(path: Path, weights: bool) -> Text:
    if path.suffix == ".jsonl":
        return _lines(path)
    if path.suffix == ".json":
        return Text(0, _strict(path.read_bytes()) or "")
    if not weights:
        with open(path, "rb") as file:
            while file.read(BLOCK_BYTES):
                continue
    return Text(0, "")


def _lines(path: Path) -> Text:
    """Lines that are JSON but no strict one, or no map, are wrong; those that are none were torn by a death."""
    torn = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                json.loads(line)
            except ValueError:
                torn += 1
                continue
            if problem := _strict(line) or ("" if line.lstrip().startswith(b"{") else "it is no map"):
                return Text(torn, f"line {number}: {problem}")
    return Text(torn, "")


def _strict(data: bytes) -> str:
    """Why these bytes are not JSON as every reader takes it; "" where they are."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(data, parse_constant=refuse)
    except ValueError as error:
        return str(error)
    return ""
