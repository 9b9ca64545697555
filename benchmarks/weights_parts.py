"""The processes of `benchmarks.weights`: one that publishes, and actors that generate while they load."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from actors import engines, weights
from actors.config import EngineSettings, SamplingSettings
from protocols.turns import TOKENS
from protocols.weights import WeightRef

PROMPT_TOKENS, MAX_TOKENS, WARM_TOKENS = 32, 256, 16
PROBE_TOKENS = 32  # the default of learner.probe_tokens
GPU_MEMORY = 0.25  # of an engine: two, and the publisher, share one
COPY_BYTES = 256 << 20  # copied at once: beyond every cache, and no second model in memory


@dataclass(frozen=True, slots=True)
class Spec:
    """What is published and who applies it. `generations` run at once in each of `actors` engines."""

    model: str
    dtype: str
    actors: int
    generations: int


class Publisher:
    """The learner's side: a model that changes a little before each version, as a step changes it."""

    def __init__(self, spec: Spec, device: str):
        import torch

        from learner.model.load import load_model
        from learner.model.policy import Policy
        from learner.ranks.trainer import DTYPES
        from learner.weights import publish
        from learner.weights.proof import Proof, perturbed

        torch.set_num_threads(1)
        model = load_model(spec.model, DTYPES[spec.dtype], "sdpa")
        self._policy = Policy(model.eval()).to(device)
        self._tokens = publish.probe_tokens(PROBE_TOKENS, model.config.vocab_size, 0)
        load = partial(load_model, spec.model, DTYPES[spec.dtype], "sdpa")
        self._proof = Proof(load, perturbed, self._tokens, model.config.vocab_size, device)
        self._device, self._version, self._blob = device, 0, None

    def publish(self) -> tuple[WeightRef, float, float]:
        """A new version, when the clock started, and the seconds until its reference is there.

        The clock starts with the weights gathered on the CPU and the probe scored, as `publish` is called.
        """
        import torch

        from learner.weights.publish import publish

        self._version += 1
        with torch.no_grad():
            for parameter in self._policy.parameters():
                parameter.mul_(0.99)
            row = torch.tensor([self._tokens], device=self._device)
            places = torch.arange(row.shape[1], device=self._device)
            logprobs, _ = self._policy(row, places[None], places[:-1], row[0, 1:])
            named = self._policy.model.named_parameters()
            state = {name: parameter.detach().to("cpu", copy=True) for name, parameter in named}
        probe = self._proof.probe(state, tuple(logprobs.tolist()))
        began = time.monotonic()
        ref = publish(state, self._version, probe)
        self._blob = ref.blob  # the one version that is kept
        return ref, began, time.monotonic() - began


class Timed:
    """An engine that notes how long `weights.apply` waits for each of its parts, in `seconds`."""

    def __init__(self, engine):
        self._engine, self.seconds = engine, {}

    def __getattr__(self, name: str):
        async def timed(*arguments):
            began = time.monotonic()
            result = await getattr(self._engine, name)(*arguments)
            self.seconds[name] = time.monotonic() - began
            return result

        return timed


class Player:
    """An actor's side: an engine that keeps `generations` going, and takes new weights as `actors.actor` does."""

    def __init__(self, spec: Spec, number: int, files):
        self._spec, self._name, self._files = spec, f"actor-{number}", files
        self._random = np.random.default_rng(number)

    async def start(self) -> str:
        """Returns the kind of engine, when it generates."""
        spec = self._spec
        settings = EngineSettings(max_length=512, max_running=spec.generations + 2, gpu_memory=GPU_MEMORY)
        self._engine = await engines.start(spec.model, spec.dtype, settings, seed=0)
        local = hasattr(self._engine, "_commands")
        self._clock = StepClock(self._engine) if local else TokenClock(self._engine)
        self._playing = [asyncio.ensure_future(self._play()) for _ in range(spec.generations)]
        await self._tokens(WARM_TOKENS)
        return type(self._engine).__name__

    async def _play(self) -> None:
        sampling = SamplingSettings(max_tokens=MAX_TOKENS)
        while True:
            prompt = self._random.integers(0, 40, PROMPT_TOKENS).astype(TOKENS)
            await self._engine.generate(prompt, sampling)

    async def update(self, ref: WeightRef) -> dict:
        """Takes the version as `Actor._try` does. Milliseconds of each part, of the pause, and when it was applied.

        Afterwards the usual pace is measured, and a plain copy of as many bytes at the same place.
        """
        placing = time.monotonic()
        path = await self._files.provide.remote(ref, self._name)
        began = time.monotonic()
        engine = Timed(self._engine)
        try:
            await weights.apply(engine, ref, path, ref.probe.limit)
        finally:
            await self._files.done.remote(self._name)
        applied = time.monotonic()
        await self._tokens(WARM_TOKENS)
        parts = {"place": began - placing, **engine.seconds}
        parts["digest"] = applied - began - sum(engine.seconds.values())
        found = {"applied_at": applied, "parts_ms": {name: 1e3 * value for name, value in parts.items()}}
        found |= self._clock.figures(began, applied)
        return found | {"memcpy_ms": 1e3 * await self._copy(ref.size_bytes)}

    async def _tokens(self, count: int) -> None:
        """Returns when every generation has had that many tokens more."""
        target = len(self._clock.times) + count
        while len(self._clock.times) < target:
            if self._engine.error is not None or any(task.done() for task in self._playing):
                raise RuntimeError(f"{self._name} no longer generates: {self._engine.error}")
            await asyncio.sleep(0.005)

    async def _copy(self, size: int) -> float:
        """Seconds of one thread to copy `size` bytes to where the weights are, between two steps as they are loaded."""
        if isinstance(self._clock, TokenClock):
            return await asyncio.to_thread(copy_to_device, size)
        source, target = (np.ones(min(size, COPY_BYTES), np.uint8) for _ in range(2))

        def copy() -> float:
            began = time.monotonic()
            for start in range(0, size, len(source)):
                np.copyto(target[: size - start], source[: size - start])
            return time.monotonic() - began

        return await self._engine._do(copy)

    async def close(self) -> None:
        for task in self._playing:
            task.cancel()
        await self._engine.close()


def copy_to_device(size: int) -> float:
    import torch

    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    began = time.monotonic()
    target.copy_(source)
    torch.cuda.synchronize()
    return time.monotonic() - began


class StepClock:
    """The steps of an engine in this process: each gives every running generation a token."""

    def __init__(self, engine):
        self.times: list[float] = []  # of the ends
        self._begins: list[float] = []
        step = engine._llm.step

        def timed():
            began = time.monotonic()
            outputs = step()
            self._begins.append(began)
            self.times.append(time.monotonic())
            return outputs

        engine._llm.step = timed

    def figures(self, began: float, ended: float) -> dict:
        """Milliseconds: the longest time without a step while weights came, beyond the usual; all of it; tokens."""
        between = [(end, begin - end) for end, begin in zip(self.times, self._begins[1:], strict=False)]
        usual = statistics.median(gap for _, gap in between)
        held = [max(0.0, gap - usual) for end, gap in between if end + gap >= began and end <= ended]
        return {"pause_ms": 1e3 * max(held), "held_ms": 1e3 * sum(held), **token_gap(self.times, began, ended)}


class TokenClock:
    """Tokens of one generation after another of an engine elsewhere, as they arrive."""

    def __init__(self, engine):
        self.times: list[float] = []
        self._task = asyncio.ensure_future(self._watch(engine))

    async def _watch(self, engine) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        for number in itertools.count():
            prompt = engine._requests.prompt(np.arange(PROMPT_TOKENS), engine.version, MAX_TOKENS)
            async for _ in engine._llm.generate(prompt, parameters, f"watched-{number}"):
                self.times.append(time.monotonic())

    def figures(self, began: float, ended: float) -> dict:
        """Steps are not seen here: what tokens wait stands for what the engine is held."""
        found = token_gap(self.times, began, ended)
        return {"pause_ms": found["token_gap_ms"], "held_ms": found["token_gap_ms"], **found}


def token_gap(times: Sequence[float], began: float, ended: float) -> dict:
    """From the times of tokens, in milliseconds: the longest wait for the next one between `began` and `ended` beyond
    the usual wait, and that, the median of all others."""
    waits = [(earlier, later - earlier) for earlier, later in itertools.pairwise(times)]
    inside = [wait for start, wait in waits if start + wait >= began and start <= ended]
    usual = statistics.median(wait for start, wait in waits if start + wait < began or start > ended)
    return {"token_gap_ms": 1e3 * max(0.0, max(inside) - usual), "usual_ms": 1e3 * usual}
