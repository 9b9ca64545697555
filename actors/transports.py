"""How a version's bytes reach an engine: the first of these that does it.

    shared         on the learner's node: the learner's own memory is mapped, and a lock keeps that as it is. The actor
                   maps the host's; on a GPU, also one that both share, the engine's workers do, by CUDA's handle of it
    collective     elsewhere: the learner broadcasts to the workers of all engines there at once
    object_store   anywhere: Ray moves the bytes once to each node, where one file in /dev/shm serves all engines

The object store has what others do not: the trial, which each actor takes when it starts, and versions whose broadcast
failed or had begun before an actor asked. Where shared memory cannot be mapped, say between containers of one node, or
of a GPU that another one does not reach, others stand in: that is said once, and a GPU's is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.collective import Receiver, dropped
from actors.engines import Workers
from protocols import metrics, process_folder
from protocols.errors import RedraftError
from protocols.weights import TRIAL, WeightRef

log = logging.getLogger("redraft.weights")
FOLDER = process_folder.SHARED
STAMP_WITHIN = 512  # bytes from the start, in which a version's stamp is
MAP = "redraft_map"
Key = tuple[int, str]
"""A version, and its stamp: what each learner calls version 0, or its trial, is its own."""


class Superseded(Exception):
    """This version is to be had no more: the learner has announced a newer one, or will, once its ranks that have died
    are there again."""


class Transports:
    """Of one actor. `node` is Ray's id of its own; `files` finds the NodeFiles there, when they are first needed."""

    def __init__(self, node: str, reader: str, files: Callable[[], Awaitable[Any]]):
        self._node, self._reader, self._files = node, reader, files
        self._receiver = Receiver(reader)
        self._said, self._maps = False, True
        self.last = ""
        """The transport by which the last version came."""

    @contextlib.asynccontextmanager
    async def fetched(self, ref: WeightRef, engine: Workers, limit_s: float) -> AsyncIterator[Path | None]:
        """Where a version's bytes are, which stay as they are until the end of the context: the path of them on this
        node, or None where the engine's workers hold them.

        A broadcast is waited for no longer than half of `limit_s`. Raises Superseded where the bytes are gone.
        """
        async with contextlib.AsyncExitStack() as stack:
            if (pinned := await self._shared(ref, engine, limit_s / 2, stack)) is not None:
                transport, path = "shared", None if ref.handle else pinned.path
            elif await self._broadcast(ref, engine, limit_s / 2):
                stack.push_async_callback(dropped, engine)
                transport, path = "collective", None
            else:
                transport, path = "object_store", await self._filed(ref, stack)
            self.last = transport
            metrics.WEIGHTS_FETCHED.labels(transport=transport).inc()
            yield path

    async def _shared(
        self, ref: WeightRef, engine: Workers, limit_s: float, stack: contextlib.AsyncExitStack
    ) -> Pinned | None:
        """The learner's memory, where it is mapped, here or by the engine's workers: it stays as it is as long as
        `stack`. Workers are waited for no longer than `limit_s`."""
        if not ref.path or ref.node != self._node or (ref.handle and not (engine.workers and self._maps)):
            return None
        async with contextlib.AsyncExitStack() as mapped:
            try:
                pinned = mapped.enter_context(Pinned(ref))
                if ref.handle:
                    mapped.push_async_callback(dropped, engine)
                    await self._mapped(ref, engine, limit_s)
            except BlockingIOError:
                return None  # a newer version is being written there
            except OSError as error:
                if not self._said:
                    log.warning(
                        "weights go another way than by the learner's memory, which cannot be mapped: %s", error
                    )
                self._said = True
                return None
            await stack.enter_async_context(mapped.pop_all())
            return pinned

    async def _mapped(self, ref: WeightRef, engine: Workers, limit_s: float) -> None:
        """Has all workers map a GPU's memory. Raises OSError where one cannot, and would not the next time."""
        try:
            async with asyncio.timeout(limit_s):
                problems = await engine.ask(MAP, ref.handle, ref.size_bytes, ref.stamp)
        except TimeoutError:
            problems = [f"not within {limit_s:g} s"]
        if problem := next(filter(None, problems), None):
            self._maps = False
            raise OSError(problem)

    async def _broadcast(self, ref: WeightRef, engine: Workers, limit_s: float) -> bool:
        """Whether the engine's workers have received the version. The trial is for each actor alone."""
        if ref.version == TRIAL or not engine.workers:
            return False
        return await self._receiver.received(ref, engine, limit_s)

    async def _filed(self, ref: WeightRef, stack: contextlib.AsyncExitStack) -> Path:
        files = await self._files()
        stack.push_async_callback(files.done.remote, self._reader)
        path = await files.provide.remote(ref, self._reader)
        if path is None:
            raise Superseded(f"version {ref.version}")
        return Path(path)


class Pinned:
    """A version in the learner's memory, which stays as it is until this is closed, or this process ends. `path` is
    where it can be opened meanwhile, also when the learner has ended.

    Raises BlockingIOError where it has been replaced, or is being, and OSError where it cannot be read.
    """

    def __init__(self, ref: WeightRef):
        self._file = os.open(ref.path, os.O_RDONLY)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._file}")
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if f'"{ref.stamp}"'.encode() not in os.pread(self._file, STAMP_WITHIN, 0):
                raise BlockingIOError(f"{ref.path} holds another version")
        except OSError:
            os.close(self._file)
            raise

    def __enter__(self) -> Pinned:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


class NodeFiles:
    """Owns the weight files of one run on one node. A Ray actor a node; engines ask it for a version's file.

    A file goes when no engine is reading it and a newer version has come, so a node holds one file, or two while an
    update is under way. Versions are told apart by their stamps, too: every learner's trial has the same number, and
    this outlives a learner whose ranks start anew. What dead processes left behind on the node is swept at the start
    and at the end.
    """

    def __init__(self, run_id: str):
        process_folder.sweep()
        self._folder = process_folder.made(FOLDER, run_id)
        self._files: dict[Key, asyncio.Task[str | None]] = {}
        self._readers: dict[str, Key] = {}
        self._closed = False

    async def provide(self, ref: WeightRef, reader: str) -> str | None:
        """The path of this version's file on this node, kept until `reader` is done with it; None where the learner
        holds it no more, or the run has ended. Raises RedraftError where there is no room for it."""
        if self._closed:
            return None
        key = self._readers[reader] = (ref.version, ref.stamp)
        known = self._files.get(key)
        if known is None or (known.done() and not _path_of(known)):
            self._files[key] = asyncio.ensure_future(self._fetch(ref))
        path = await self._files[key]
        self._remove_unread(newest=next(reversed(self._files)))
        return path

    async def done(self, reader: str) -> None:
        self._readers.pop(reader, None)
        self._remove_unread(newest=next(reversed(self._files), None))

    async def close(self) -> None:
        """Waits for what is being written, which would outlive its folder's removal."""
        self._closed = True
        await asyncio.gather(*self._files.values(), return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        process_folder.sweep()

    async def _fetch(self, ref: WeightRef) -> str | None:
        from ray.exceptions import ObjectLostError, RayActorError

        try:
            found = await ref.source.blob.remote(ref.version)
            if not found:
                return None
            data = await found[0]
        except (RayActorError, ObjectLostError):
            return None  # its process has ended, and with it what it kept
        name = "-".join(filter(None, (str(ref.version), ref.stamp.replace("/", "-"))))
        path = self._folder / f"{name}.safetensors"
        await asyncio.to_thread(_write, path, data)
        return str(path)

    def _remove_unread(self, newest: Key | None) -> None:
        for key, task in list(self._files.items()):
            if task.done() and key != newest and key not in self._readers.values():
                del self._files[key]
                if path := _path_of(task):
                    Path(path).unlink(missing_ok=True)


def _path_of(task: asyncio.Task[str | None]) -> str | None:
    """Of a file that has been written; None where none came of it."""
    return None if task.cancelled() or task.exception() is not None else task.result()


def _write(path: Path, data: np.ndarray) -> None:
    """Writes aside and renames, so that nobody maps half a file."""
    free = shutil.disk_usage(path.parent).free
    if free < data.nbytes:
        raise RedraftError(
            f"{FOLDER} of this node has {free / 1e6:.0f} MB free, and a version takes {data.nbytes / 1e6:.0f}: "
            "give the container more of it (--shm-size)"
        )
    aside = path.with_suffix(".tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data.data)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # else it would keep the room that was missing
        raise
