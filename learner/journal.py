"""The journal: what each step trained on, in its order, and the digest of the weights that it made.

By it a run can be trained again step by step (`redraft replay train`). It is written where the recipe asks for it:
`learner.record.batches`.

batches/step-000001.batch     CRC-32, then msgpack: facts of the step; index and blob of its groups, as they travel

It is written after the step and before the checkpoint that covers it, so every step that a resumed run goes on from has
its file; a step that is played again writes it anew. What the disk does not take is logged once, and waits for room;
where too much waits, the oldest is counted and left out: the run goes on, and cannot be trained again beyond that step.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import numpy as np

from protocols import metrics
from protocols.errors import RedraftError, WireError
from protocols.turns import Close, Group
from protocols.wire import CRC, SCHEMA, join, row_of, split, whole_group

log = logging.getLogger("redraft.learner")
FOLDER = "batches"
WAITING = 32  # steps that wait for room on the disk


@dataclass(frozen=True, slots=True)
class Entry:
    """One step: the groups in the order in which they were trained, and what else the step was made of.

    `importance` float32[groups] scales the loss of each group. `steps` of the whole run are what the learning rate
    falls over. `digest` is that of `version`'s weights, "" where the step published none.
    """

    step: int
    version: int
    digest: str
    steps: int
    ranks: int
    importance: np.ndarray
    groups: tuple[Group, ...]


def packed(groups: Sequence[Group], importance: np.ndarray | None) -> dict[str, Any]:
    """Groups as they are kept; `importance` None: all by 1."""
    weights = np.ones(len(groups), np.float32) if importance is None else importance.astype(np.float32)
    rows, ends = [], [0]
    for group in groups:
        closing = Close(group.id, group.lease, len(group.turns), {}, group.extra)
        rows += [row_of(item, 0) for item in (*group.turns, closing)]
        ends.append(len(rows))
    index, blob = join(rows)
    return {"ends": ends, "importance": weights.tobytes(), "index": index, "blob": blob}


class Journal:
    """That of one incarnation of a run of `steps` steps with so many `ranks`."""

    def __init__(self, run_dir: Path, steps: int, ranks: int):
        self._folder, self._steps, self._ranks = run_dir / FOLDER, steps, ranks
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._said = False

    def write(self, step: int, version: int, digest: str, kept: dict[str, Any]) -> None:
        """Adds a step; `kept` is what `packed` made of its groups."""
        facts = {"schema": SCHEMA, "step": step, "version": version, "digest": digest}
        body: bytes = msgpack.packb(facts | {"steps": self._steps, "ranks": self._ranks} | kept)  # pyright: ignore
        self._waiting.append((step, CRC.pack(crc32(body)) + body))
        self.flush()
        if len(self._waiting) > WAITING:
            self._waiting.popleft()
            metrics.RECORD_FAILURES.inc()

    def flush(self) -> None:
        """Writes what waits for room, where there is some."""
        while self._waiting:
            step, data = self._waiting[0]
            target = path(self._folder.parent, step)
            aside = target.with_suffix(".tmp")
            try:
                self._folder.mkdir(exist_ok=True)
                aside.write_bytes(data)
                aside.rename(target)
            except OSError as error:
                if not self._said:
                    log.warning("the batch of step %d waits for room on the disk: %s; logged once", step, error)
                self._said = True
                return
            self._waiting.popleft()


def path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step:06d}.batch"


def steps(run_dir: Path) -> list[int]:
    """The steps that are kept, rising."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (run_dir / FOLDER).glob("step-*.batch"))


def read(run_dir: Path, step: int) -> Entry:
    """Raises RedraftError where the step is not kept, or not as it was written."""
    file = path(run_dir, step)
    try:
        data = file.read_bytes()
        if crc32(data[CRC.size :]) != CRC.unpack_from(data)[0]:
            raise WireError("it fails its checksum")
        found = msgpack.unpackb(data[CRC.size :])
        if found["schema"] != SCHEMA:
            raise WireError(f"schema {found['schema']} where {SCHEMA} is read")
        rows = split(found["index"], found["blob"])
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RedraftError(f"{file} cannot be read: {why}") from None
    return Entry(
        step=found["step"],
        version=found["version"],
        digest=found["digest"],
        steps=found["steps"],
        ranks=found["ranks"],
        importance=np.frombuffer(found["importance"], np.float32),
        groups=tuple(whole_group(rows[start:end]) for start, end in pairwise(found["ends"])),
    )
