"""vLLM in processes of its own, through AsyncLLM: the way on GPUs.

Weights are replaced by one RPC that the core carries out between two steps; generations run on. An RPC is all that the
core does meanwhile, so what takes long, as mapping weights and summing them, is begun by one and asked for by others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EngineSettings, SamplingSettings
from actors.engines import ABORTED, Completion, Live, vllm_common
from actors.engines.vllm_output import Output
from protocols.checksum import Unit
from protocols.errors import RedraftError

log = logging.getLogger("redraft.engine")
LOOK_S = 0.5  # between two looks at how far a start is
ASK_S = 0.002, 0.02  # between two looks whether workers have answered, at first and at last


class AsyncEngine:
    """Keeps the contract of actors.engines.Engine."""

    def __init__(self, llm, requests: vllm_common.Requests, version: int, output: Output, workers: int):
        self.version, self.workers = version, workers
        self._llm, self._requests, self._output = llm, requests, output
        self._under_way: set[str] = set()
        self._count = 0

    @classmethod
    async def start(
        cls,
        model: Path,
        dtype: str,
        settings: EngineSettings,
        seed: int,
        version: int,
        tell: Callable[[str], None],
        sleeps: bool = False,
    ) -> AsyncEngine:
        """Tells meanwhile what the start is at. Raises RedraftError with what the core wrote where that ended."""
        vllm_common.prepare_process(settings, separate=True, model=model)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        requests = vllm_common.Requests(vllm_common.end_token(model), settings.max_length)
        arguments = vllm_common.engine_arguments(model, dtype, settings, seed)
        arguments["log_level"] = "INFO"
        if sleeps:
            arguments["enable_sleep_mode"] = True
        output = Output()
        telling = asyncio.create_task(_tell(output, tell))
        try:
            llm = await asyncio.to_thread(_made, output, AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments))
        finally:
            telling.cancel()
            tell(output.phase)  # what it had come to, also where it was quicker than any look
        await llm.update_weight_version(str(version))
        return cls(llm, requests, version, output, settings.tensor_parallel)

    @property
    def running(self) -> int:
        return len(self._under_way)

    @property
    def error(self) -> BaseException | None:
        if not self._llm.errored:
            return None
        return RedraftError(f"{self._llm.dead_error} Its core wrote: {self._output.cause}")

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        added, version = time.monotonic(), self.version
        output = await self._last(prompt_ids, self._requests.sampling(sampling), sampling.max_tokens)
        if output is None:
            return ABORTED
        times = output.metrics  # None where vLLM's stats are off
        queued_s = max(0.0, times.scheduled_ts - times.queued_ts) if times else 0.0
        return vllm_common.completion_of(output, version, time.monotonic() - added, queued_s)

    async def score(self, ids: np.ndarray) -> np.ndarray:
        return vllm_common.prompt_logprobs(await self._last(ids, self._requests.scoring(), 1), ids)

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        await self._llm.collective_rpc("redraft_begin", args=(method, *arguments))
        pause_s, longest_s = ASK_S
        while None in (found := await self._llm.collective_rpc("redraft_ended")):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        return [answer for (answer,) in found]

    async def load(self, path: Path | None, version: int) -> None:
        await self.ask("redraft_open", None if path is None else str(path))
        await self._llm.update_weight_version(str(version))  # first: what is loaded is never labelled older
        await self._llm.collective_rpc("redraft_load")
        self.version = version

    async def sums(self, unit: Unit) -> Live | None:
        return vllm_common.live(await self.ask("redraft_sums", unit))

    async def abort(self) -> None:
        await self._llm.abort(list(self._under_way))

    async def sleep(self) -> None:
        await self._llm.pause_generation(mode="abort", clear_cache=True)
        await self._llm.release_kv_cache_memory()  # weights stay, unlike in vLLM's levels of sleep

    async def wake(self) -> None:
        await self._llm.wake_up(["kv_cache"])

    async def close(self) -> None:
        self._llm.shutdown()

    async def _last(self, ids: np.ndarray, parameters, room: int):
        self._count += 1
        name = str(self._count)
        self._under_way.add(name)
        last = None
        try:
            async for output in self._llm.generate(self._requests.prompt(ids, self.version, room), parameters, name):
                last = output
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        finally:
            self._under_way.discard(name)
        return last


def _made(output: Output, make: Callable, arguments):
    """The engine; its processes write to `output`. Raises RedraftError where one of them ended."""
    with output:
        try:
            return make(arguments)
        except RuntimeError as error:
            if "core" not in str(error):
                raise
            failed = error
        finally:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # its processes tell how far they are; this one does not
    log.error("vLLM's core ended at its start; its last lines:\n%s", output.end)
    raise RedraftError(f"vLLM's core ended at its start: {output.cause}") from failed


async def _tell(output: Output, tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        tell(output.phase)
