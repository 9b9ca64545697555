"""What of a run folder a resume needs, as of one moment, while the run goes on.

    checkpoints/step-000100/    the newest checkpoint, held by hard links so that it stays while it is copied; also the
                                best, where the run keeps it, and kept.json, which says which one that is
    spool/0/data.mdb            what replay had stored after that checkpoint, and before it forgot for a later one
    checkpoints/incarnation     read after the spool: none of its turns was sampled by a later incarnation
    *.jsonl, turns/, logs/ ...  what people read; of files that grow, what was there when they were looked at

A spool from before the checkpoint would lack groups that it has trained, which would be played and trained anew. One
from after a later checkpoint would lack groups that only that one has trained, which would be skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from learner import checkpoint
from protocols.errors import DeadlineError
from redraft import lease_file
from redraft import run as runs
from redraft.files import link
from redraft.run import Run
from replay.disk.reader import SpoolReader

ASIDE = ".copying"
LEFT_OUT = ("lock", lease_file.NAME, "readers", "keys", "metrics.token", "spool", "checkpoints")
"""Of this machine alone, or taken as above."""
AGAIN_S = 0.2  # between two tries, where a checkpoint came meanwhile


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`files` are by their paths in the run folder: those of `still` do not change any more, those of `growing` may
    grow, and their first bytes, so many, are meant. `digests` are of those whose digest is known."""

    step: int | None
    still: dict[str, Path]
    growing: dict[str, tuple[Path, int]]
    digests: dict[str, str]


@contextmanager
def taken(run: Run, limit_s: float) -> Iterator[Snapshot]:
    """The snapshot, while it lasts. Raises DeadlineError where checkpoints come faster than it can be taken, OSError
    where the disk does not take it."""
    aside, deadline = run.folder / ASIDE, time.monotonic() + limit_s
    try:
        while not _held(run, aside):
            if time.monotonic() > deadline:
                raise DeadlineError("the copy of the run", "a spool between two checkpoints", limit_s)
            time.sleep(AGAIN_S)
        step = runs.newest_step(aside)
        still = {str(path.relative_to(aside)): path for path in sorted(aside.rglob("*")) if path.is_file()}
        digests = _digests(aside)
        growing = {name: (path, path.stat().st_size) for name, path in _others(run.folder)}
        yield Snapshot(step, still, growing, digests)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _held(run: Run, aside: Path) -> bool:
    """Holds the newest checkpoint and the best, if any, and the spool that goes with the first in `aside`. False where
    another checkpoint came meanwhile."""
    shutil.rmtree(aside, ignore_errors=True)
    newest = checkpoint.newest(run.folder)
    (aside / "checkpoints").mkdir(parents=True)
    for folder in dict.fromkeys(filter(None, (newest, checkpoint.best(run.folder)))):
        try:
            shutil.copytree(folder, aside / "checkpoints" / folder.name, copy_function=link)
        except OSError:
            if folder.exists():
                raise
            return False  # newer or better ones have come, and it was removed
    kept = run.checkpoints / checkpoint.KEPT
    if kept.exists():
        shutil.copy(kept, aside / "checkpoints")
    for spool in sorted((run.folder / "spool").glob("*/data.mdb")):
        kept = aside / "spool" / spool.parent.name
        kept.mkdir(parents=True)
        with SpoolReader(spool.parent) as reader:
            reader.copy(kept)
    if checkpoint.newest(run.folder) != newest:
        return False
    incarnation = run.checkpoints / "incarnation"
    if incarnation.exists():
        shutil.copy(incarnation, aside / "checkpoints")
    return True


def _digests(aside: Path) -> dict[str, str]:
    """Those that checkpoints say of their files."""
    held = [aside / "checkpoints" / f"step-{step:06d}" for step in checkpoint.steps(aside)]
    return {
        f"{folder.relative_to(aside)}/{name}": digest
        for folder in held
        for name, digest in checkpoint.digests(folder).items()
    }


def _others(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if place.parts[0] not in LEFT_OUT and not hidden and path.is_file():
            yield str(place), path
