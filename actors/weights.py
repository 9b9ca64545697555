"""Weights on a node: one file in /dev/shm for all its engines, and the proof that an engine computes with it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np

from actors.engines import Engine
from protocols import metrics
from protocols.errors import WeightsError
from protocols.weights import WeightRef

log = logging.getLogger("redraft.weights")
FOLDER = Path("/dev/shm")
PREFIX = "redraft-"


class NodeFiles:
    """Owns the weight files of one run on one node. A Ray actor a node; engines ask it for a version's file.

    A file goes when no engine is reading it and a newer version has come, so a node holds one file, or two while an
    update is under way. Folders that a dead run left behind are swept when the next one starts.
    """

    def __init__(self, run_id: str):
        sweep()
        self._folder = FOLDER / f"{PREFIX}{run_id[:12]}-{os.getpid()}"
        self._folder.mkdir(mode=0o700)
        self._files: dict[str, asyncio.Task] = {}
        self._readers: dict[str, str] = {}

    async def provide(self, ref: WeightRef, reader: str) -> str:
        """The path of this version's file on this node, kept until `reader` is done with it."""
        self._readers[reader] = ref.digest
        known = self._files.get(ref.digest)
        if known is None or (known.done() and known.exception() is not None):
            self._files[ref.digest] = asyncio.ensure_future(self._fetch(ref))
        path = await self._files[ref.digest]
        self._remove_unread(newest=next(reversed(self._files)))
        return path

    async def done(self, reader: str) -> None:
        self._readers.pop(reader, None)
        self._remove_unread(newest=next(reversed(self._files), ""))

    async def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _fetch(self, ref: WeightRef) -> str:
        data = await ref.blob  # pyright: ignore[reportGeneralTypeIssues]  a Ray reference
        path = self._folder / f"{ref.version}.safetensors"
        await asyncio.to_thread(_write, path, data)
        return str(path)

    def _remove_unread(self, newest: str) -> None:
        for digest, task in list(self._files.items()):
            if task.done() and digest != newest and digest not in self._readers.values():
                del self._files[digest]
                if task.exception() is None:
                    Path(task.result()).unlink(missing_ok=True)


def _write(path: Path, data: np.ndarray) -> None:
    """Writes aside and renames, so that nobody maps half a file."""
    aside = path.with_suffix(".tmp")
    with open(aside, "wb") as file:
        file.write(data.data)
    aside.rename(path)


def sweep() -> list[Path]:
    """Removes the folders of processes that are gone; returns them."""
    swept = []
    for folder in FOLDER.glob(f"{PREFIX}*-*"):
        owner = folder.name.rsplit("-", 1)[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


async def apply(engine: Engine, ref: WeightRef, path: str, limit: float) -> float:
    """Loads `ref` from `path` and proves it: returns the median difference of the probe's log-probs.

    Raises WeightsError when the bytes are not those that were published, when the live parameters are not those of
    the file, or when the engine's log-probs of the probe differ from the learner's by more than `limit`.
    """
    began = time.monotonic()
    if (found := await asyncio.to_thread(_digest, path)) != ref.digest:
        raise WeightsError(f"version {ref.version}: the file's digest is {found[:12]}, {ref.digest[:12]} was published")
    await engine.load(Path(path), ref.version)
    elements = await engine.elements()
    if elements is not None and elements != ref.elements:
        raise WeightsError(f"version {ref.version}: the engine's live parameters are not those that were loaded")
    difference = await probe(engine, ref)
    if not difference <= limit:  # also when it is not a number
        raise WeightsError(
            f"version {ref.version}: the engine's log-probs of the probe differ from the learner's by "
            f"{difference:.2g} in the median (limit {limit:.2g}): it does not compute with these weights"
        )
    metrics.WEIGHTS_APPLIED_SECONDS.observe(time.monotonic() - began)
    metrics.ACTOR_VERSION.set(ref.version)
    metrics.PROBE_DIFFERENCE.set(difference)
    metrics.PROBE_LIMIT.set(limit)
    metrics.ACTOR_VERIFIED.set(1)
    return difference


async def probe(engine: Engine, ref: WeightRef) -> float:
    """Median absolute difference between the engine's log-probs of the probe and the learner's."""
    scored = await engine.score(np.array(ref.probe.tokens, np.int32))
    return float(np.median(np.abs(scored - np.array(ref.probe.logprobs, np.float32))))


def _digest(path: str) -> str:
    from blake3 import blake3

    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
