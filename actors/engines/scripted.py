"""An engine without a model: deterministic answers and a latency model, for simulation and for tests of other parts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from actors import rendering
from actors.config import EngineSettings, SamplingSettings
from actors.engines import Completion, Live
from protocols.checksum import Unit
from protocols.turns import LOGPROBS, TOKENS, Stop


class ScriptedEngine:
    """Answers each prompt with tokens drawn from (seed, prompt), always the same; log-probs are those of a fair draw.

    Its weights are a number: `load` only takes the version, `score` returns the fair draw's log-probs.
    """

    def __init__(self, model: Path, settings: EngineSettings, seed: int, version: int):
        renderer = rendering.load(model)
        self.version, self.running, self.error, self.workers = version, 0, None, 0
        self._settings, self._seed = settings, seed
        self._vocabulary, self._ends = len(renderer.tokenizer), renderer.ends
        self._stopped = asyncio.Event()

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        draw = np.random.default_rng([self._seed, *map(int, prompt_ids)])
        ids = draw.integers(0, self._vocabulary, sampling.max_tokens).astype(TOKENS)
        ids[-1] = self._ends[0]
        first, version = int(np.argmax(np.isin(ids, self._ends))) + 1, self.version
        seconds = self._settings.first_token_s + first * self._settings.token_s
        if await self._aborted_within(seconds):
            return Completion(ids[:0], np.empty(0, LOGPROBS), (), Stop.ABORTED, seconds)
        logprobs = np.full(first, -np.log(self._vocabulary), LOGPROBS)
        return Completion(ids[:first], logprobs, ((0, version),), Stop.END, seconds)

    async def _aborted_within(self, seconds: float) -> bool:
        self.running += 1
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self.running -= 1
        return True

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        return []

    async def load(self, path: Path | None, version: int) -> None:
        self.version = version

    async def score(self, ids: np.ndarray) -> np.ndarray:
        return np.full(len(ids) - 1, -np.log(self._vocabulary), LOGPROBS)

    async def sums(self, unit: Unit) -> Live | None:
        return None

    async def abort(self) -> None:
        self._stopped.set()
        self._stopped = asyncio.Event()

    async def close(self) -> None:
        await self.abort()
