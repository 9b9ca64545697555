"""The proof that an engine computes with the weights that the learner published, and what waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from actors.config import SamplingSettings
from actors.engines import ABORTED, Completion, Engine, Sleeper
from protocols import metrics
from protocols.checksum import Sums, Unit
from protocols.errors import WeightsError
from protocols.weights import WeightRef

log = logging.getLogger("redraft.weights")
UNITS: tuple[Unit, ...] = ("words", "elements")  # the fast one first


@dataclass(frozen=True, slots=True)
class _Trial:
    """A version that is being proved."""

    version: int
    passed: asyncio.Future[bool]


class Proved:
    """An engine that takes new weights with their proof. Generations run on meanwhile, but no answer gets out in which
    weights had a part that are not proved: it waits, and is given up where the proof fails."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._trial: _Trial | None = None
        self._begun = 0  # versions that were tried so far

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def error(self) -> BaseException | None:
        return self._engine.error

    async def abort(self) -> None:
        await self._engine.abort()

    async def close(self) -> None:
        await self._engine.close()

    async def sleep(self) -> None:
        await cast(Sleeper, self._engine).sleep()

    async def wake(self) -> None:
        await cast(Sleeper, self._engine).wake()

    @property
    def workers(self) -> int:
        return self._engine.workers

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        return await self._engine.ask(method, *arguments)

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        made, trial = await self._engine.generate(prompt_ids, sampling), self._trial
        if trial is None or all(version != trial.version for _, version in made.versions):
            return made
        return made if await asyncio.shield(trial.passed) else ABORTED

    async def scored(self, ids: np.ndarray) -> tuple[np.ndarray, int] | None:
        """Log-probs float32[len - 1] of ids[1:] at temperature 1, by the weights of the version that is told, which are
        proved; None where the proof fails."""
        while True:
            trial = self._trial
            if trial is not None and not await asyncio.shield(trial.passed):
                return None
            begun, version = self._begun, self._engine.version
            logprobs = await self._engine.score(ids)
            if self._begun == begun:  # else parts may be by other weights
                return logprobs, version

    async def apply(self, ref: WeightRef, path: Path | None, limit: float) -> float:
        """See the function of this name."""
        self._begun += 1
        trial = self._trial = _Trial(ref.version, asyncio.get_running_loop().create_future())
        try:
            difference = await apply(self._engine, ref, path, limit)
        except BaseException:
            trial.passed.set_result(False)
            raise
        trial.passed.set_result(True)
        self._trial = None
        return difference


async def apply(engine: Engine, ref: WeightRef, path: Path | None, limit: float) -> float:
    """Loads `ref` and proves it: returns the median difference of the probe's log-probs. It is at `path`, or with None
    held by the engine's workers.

    Raises WeightsError when the bytes are not those that were published, when the live parameters are not those of
    the file, or when the engine's log-probs of the probe differ from the learner's by more than `limit`.
    """
    began = time.monotonic()
    if path is None:
        await check_held(engine, ref)
    else:
        await asyncio.to_thread(check, ref, path)
    await engine.load(path, ref.version)
    live, difference = await asyncio.gather(_read_back(engine, ref, path), probe(engine, ref))
    if not live:
        raise WeightsError(f"version {ref.version}: the engine's live parameters are not those that were loaded")
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


def check(ref: WeightRef, path: Path) -> None:
    """Raises WeightsError unless the bytes at `path` are those that were published."""
    from actors.laid_out import LaidOut

    if problem := LaidOut.at(path).wrong(*_published(ref)):
        raise WeightsError(f"version {ref.version}: {problem}")


async def check_held(engine: Engine, ref: WeightRef) -> None:
    """The same of the bytes that each worker of an engine holds."""
    if problem := next(filter(None, await engine.ask("redraft_wrong", *_published(ref))), None):
        raise WeightsError(f"version {ref.version}: {problem}")


def _published(ref: WeightRef) -> tuple[int, str, list[tuple[int, str]]]:
    """What bytes are compared with: see LaidOut.wrong."""
    return ref.size_bytes, str(ref.head), [(bucket.tensors, str(bucket.sums)) for bucket in ref.buckets]


async def _read_back(engine: Engine, ref: WeightRef, path: Path | None) -> bool:
    """Whether the live parameters are those of the file, where they can be read back: word by word, and where an engine
    keeps them in another order, element by element."""
    for unit in UNITS:
        live = await engine.sums(unit)
        if live is None:
            return True
        if ref.rest is not None:
            wanted = ref.rest[unit]
        else:
            wanted = ref.sums if unit == "words" else await _elements(engine, path)
        if live.sums == wanted * live.times:
            return True
    return False


async def _elements(engine: Engine, path: Path | None) -> Sums:
    from actors.laid_out import LaidOut

    if path is None:
        return Sums.of((await engine.ask("redraft_elements"))[0])
    return await asyncio.to_thread(LaidOut.at(path).sums, "elements")


async def probe(engine: Engine, ref: WeightRef) -> float:
    """Median absolute difference between the engine's log-probs of the probe and the learner's."""
    scored = await engine.score(np.array(ref.probe.tokens, np.int32))
    return float(np.median(np.abs(scored - np.array(ref.probe.logprobs, np.float32))))
