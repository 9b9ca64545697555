"""Engines turn token ids into token ids. All keep one contract, so nothing else knows which one runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.config import EngineSettings, SamplingSettings
from protocols.checksum import Sums, Unit
from protocols.turns import LOGPROBS, TOKENS, Stop


@dataclass(frozen=True, slots=True)
class Completion:
    """ids int32[R] (end token included), logprobs float32[R] at the sampling temperature, and when they were made.

    `seconds` from request to last token, `queued_s` of them before it had a place in the batch.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    versions: tuple[tuple[int, int], ...]
    stop: Stop
    seconds: float
    queued_s: float = 0.0


ABORTED = Completion(np.empty(0, TOKENS), np.empty(0, LOGPROBS), (), Stop.ABORTED, 0.0)


@dataclass(frozen=True, slots=True)
class Live:
    """Sums of the parameters that an engine computes with, `times` as large as those of what was loaded; of an adapter
    without the matrices that it changes, as they are merged. Nothing is left of those if they are in place."""

    sums: Sums
    times: int = 1


class PromptTooLong(ValueError):
    """The prompt leaves no room for a response."""


class Sampler(Protocol):
    """What a rollout needs of an engine. `version` is that of its weights."""

    @property
    def version(self) -> int: ...

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        """Samples one response. Raises PromptTooLong."""
        ...


class Workers(Protocol):
    """Those of an engine."""

    @property
    def workers(self) -> int:
        """How many there are; 0 where an engine has none that could be asked."""
        ...

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each answers to a method of WeightsExtension, beside generations."""
        ...


class Engine(Sampler, Workers, Protocol):
    """A running model. `running` counts requests under way."""

    @property
    def running(self) -> int: ...
    @property
    def error(self) -> BaseException | None:
        """What stopped the engine for good, if anything did."""
        ...

    async def load(self, path: Path | None, version: int) -> None:
        """Replaces the weights by the safetensors at `path` between two steps, while generations run on; None: by those
        that its workers hold."""

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """Log-probs float32[len - 1] of ids[1:], at temperature 1, computed anew by the weights now in force."""
        ...

    async def sums(self, unit: Unit) -> Live | None:
        """Of the live parameters, or None where they cannot be read back. Not beside a load."""

    async def abort(self) -> None:
        """Ends everything under way with stop ABORTED."""

    async def close(self) -> None: ...


class Sleeper(Protocol):
    """An engine on a GPU that was started to sleep now and then."""

    async def sleep(self) -> None:
        """Gives the memory of its cache back, and forgets what was in it. What is under way ends with stop ABORTED."""

    async def wake(self) -> None:
        """Takes it again. Raises what vLLM does where there is no room."""


def unheard(phase: str) -> None:
    """For who does not ask how far a start is."""


def imported(settings: EngineSettings) -> None:
    """Imports what `start` needs, which is most of its time on a CPU. Raises what importing raises."""
    if settings.name == "scripted":
        return
    from actors.engines import vllm_common

    separate = not vllm_common.in_process(settings)
    vllm_common.prepare_process(settings, separate)
    for module in vllm_common.MODULES[separate]:
        importlib.import_module(module)


async def start(
    model: str | Path,
    dtype: str,
    settings: EngineSettings,
    seed: int,
    version: int = 0,
    tell: Callable[[str], None] = unheard,
    sleeps: bool = False,
) -> Engine:
    """The engine that the recipe asks for, ready to generate; one in processes of its own has `tell` hear what its
    start is at, and with `sleeps` is a Sleeper."""
    if settings.name == "scripted":
        from actors.engines.scripted import ScriptedEngine

        return ScriptedEngine(Path(model), settings, seed, version)
    from actors.engines import vllm_common

    if vllm_common.in_process(settings):
        from actors.engines.vllm_local import LocalEngine

        return await LocalEngine.start(Path(model), dtype, settings, seed, version)
    from actors.engines.vllm_async import AsyncEngine

    return await AsyncEngine.start(Path(model), dtype, settings, seed, version, tell, sleeps)
