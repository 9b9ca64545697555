"""vLLM inside the actor's own process, driven by one thread: the way on a CPU.

The thread alternates between commands (new requests, new weights, aborts) and engine steps, so whatever a command
does is atomic for every generation under way, and replacing the weights needs no pause.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import EngineSettings, SamplingSettings
from actors.engines import ABORTED, Completion, Live, vllm_common
from protocols import heap
from protocols.checksum import Unit

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclass(slots=True)
class _Waiting:
    """A request under way: who waits for it, when it came, and when it got a place in the batch."""

    future: asyncio.Future
    added: float
    begun: float
    version: int
    ids: np.ndarray | None = None  # of a scoring request


class LocalEngine:
    """Keeps the contract of actors.engines.Engine. One thread makes `_llm` and steps it.

    What only reads is done beside the steps, in other threads, so that generations do not wait for it: opening the file
    of new weights, and summing the live parameters, which nothing changes before the next load.
    """

    def __init__(
        self,
        llm: LLMEngine,
        requests: vllm_common.Requests,
        version: int,
        workers: int,
        loop: asyncio.AbstractEventLoop,
    ):
        self.version, self.workers = version, workers
        self.error: BaseException | None = None
        self._llm, self._requests, self._loop = llm, requests, loop
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count = 0
        self._names: dict[str, str] = {}  # vLLM's own of each request
        self._waiting: dict[str, _Waiting] = {}  # by these
        self._queued: deque[_Waiting] = deque()  # those that are not in the batch yet, in their order
        self._closed = threading.Event()

    @classmethod
    async def start(cls, model: Path, dtype: str, settings: EngineSettings, seed: int, version: int) -> LocalEngine:
        loop, started = asyncio.get_running_loop(), Future()

        def run():
            try:
                engine = cls(*_made(model, dtype, settings, seed, version), version, settings.tensor_parallel, loop)
                started.set_result(engine)
            except BaseException as error:
                started.set_exception(error)
            else:
                engine._serve()

        threading.Thread(target=run, name="engine", daemon=True).start()
        return await asyncio.wrap_future(started)

    @property
    def running(self) -> int:
        return len(self._waiting)

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        return await self._request(prompt_ids, self._requests.sampling(sampling), sampling.max_tokens, scored=False)

    async def score(self, ids: np.ndarray) -> np.ndarray:
        return await self._request(ids, self._requests.scoring(), 1, scored=True)

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        return await asyncio.to_thread(self._llm.collective_rpc, method, args=arguments)

    async def load(self, path: Path | None, version: int) -> None:
        def load():
            self._llm.set_weight_version(str(version))  # before: a load that fails leaves no older label
            self._llm.collective_rpc("redraft_load")
            self.version = version

        await self.ask("redraft_open", None if path is None else str(path))
        await self._do(load)

    async def sums(self, unit: Unit) -> Live | None:
        return vllm_common.live(await self.ask("redraft_sums", unit))

    async def abort(self) -> None:
        def abort():
            self._llm.abort_request(list(self._waiting), internal=True)
            ended = [(waiting.future, ABORTED) for waiting in self._waiting.values()]
            self._waiting.clear()
            self._names.clear()
            self._queued.clear()
            self._answer(ended)

        await self._do(abort)

    async def close(self) -> None:
        self._commands.put(None)
        await asyncio.to_thread(self._closed.wait, 10)

    # From here on: asking the thread.

    async def _do(self, work: Callable[[], object]):
        """Runs `work` on the engine's thread, between two steps."""
        future: Future = Future()

        def command():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._submit(command)
        return await asyncio.wrap_future(future)

    async def _request(self, ids: np.ndarray, parameters, room: int, scored: bool):
        prompt = self._requests.prompt(ids, self.version, room)
        now = time.monotonic()
        waiting = _Waiting(self._loop.create_future(), now, now, self.version, ids if scored else None)
        self._count += 1
        name = str(self._count)

        def add():
            waiting.version = self.version
            try:
                internal = self._llm.add_request(name, prompt, parameters)
            except Exception as error:
                self._answer([(waiting.future, error)])
            else:
                self._names[name] = internal
                self._waiting[internal] = waiting
                self._queued.append(waiting)

        self._submit(add)
        return await waiting.future

    def _submit(self, command: Callable[[], None]) -> None:
        if self.error is not None:
            raise RuntimeError(f"the engine has stopped: {self.error}") from self.error
        self._commands.put(command)

    # From here on: the thread.

    def _serve(self) -> None:
        """Commands and steps until it is closed or breaks."""
        try:
            while self._commands_done():
                self._step()
        except BaseException as error:
            self.error = error
            self._answer([(waiting.future, error) for waiting in self._waiting.values()])
        finally:
            self._llm.engine_core.shutdown()
            self._closed.set()

    def _commands_done(self) -> bool:
        """Carries out all waiting commands, waiting for one when there is nothing to generate. False = close."""
        while not self._commands.empty() or not self._waiting:
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True

    def _step(self) -> None:
        began, ended = time.monotonic(), []
        outputs = self._llm.step()
        self._note_begun(began)
        for output in outputs:
            waiting = self._waiting.pop(self._names.pop(output.request_id, ""), None) if output.finished else None
            if waiting is None:
                continue
            if waiting.ids is not None:
                ended.append((waiting.future, vllm_common.prompt_logprobs(output, waiting.ids)))
            else:
                times = time.monotonic() - waiting.added, waiting.begun - waiting.added
                ended.append((waiting.future, vllm_common.completion_of(output, waiting.version, *times)))
        if ended:
            self._answer(ended)

    def _note_begun(self, began: float) -> None:
        """Of the requests that vLLM let into its batch in the step that began then: it does so in their order."""
        core: Any = self._llm.engine_core  # in this process, so it has the engine itself
        _, left = core.engine_core.scheduler.get_request_counts()
        while len(self._queued) > left:
            self._queued.popleft().begun = began

    def _answer(self, ended: Sequence[tuple[asyncio.Future, object]]) -> None:
        """Hands results to the event loop, all of one step in one wake-up."""
        self._loop.call_soon_threadsafe(_resolve, ended)


def _made(
    model: Path, dtype: str, settings: EngineSettings, seed: int, version: int
) -> tuple[LLMEngine, vllm_common.Requests]:
    """vLLM's engine with its weights loaded, and what makes requests for it."""
    vllm_common.prepare_process(settings, separate=False, model=model)
    with heap.lasting():
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

    requests = vllm_common.Requests(vllm_common.end_token(model), settings.max_length)
    llm = LLMEngine.from_engine_args(EngineArgs(**vllm_common.engine_arguments(model, dtype, settings, seed)))
    llm.set_weight_version(str(version))
    return llm, requests


def _resolve(ended: Sequence[tuple[asyncio.Future, object]]) -> None:
    for future, result in ended:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
