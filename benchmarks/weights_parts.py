"""The processes of `benchmarks.weights`: one that publishes, and actors that generate while they load."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from actors import engines, transports, weights
from actors.config import EngineSettings, SamplingSettings
from protocols.broadcast import REFUSED
from protocols.turns import TOKENS
from protocols.weights import WeightRef

PROMPT_TOKENS, MAX_TOKENS, WARM_TOKENS = 32, 256, 16
PROBE_TOKENS = 32  # the default of learner.probe_tokens
LIMIT_S = 60.0  # the default of actors.silence_s
GPU_MEMORY = 0.25  # of an engine: two, and the publisher, share one
COPY_BYTES = 256 << 20  # copied at once: beyond every cache, and no second model in memory


@dataclass(frozen=True, slots=True)
class Spec:
    """What is published and who applies it. `generations` run at once in each of `actors` engines."""

    model: str
    dtype: str
    actors: int
    generations: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A version, when the clock started (as `gather` is called), and the seconds until it was in memory to be had."""

    ref: WeightRef
    began: float
    gather_s: float


class Publisher:
    """The learner's side: a model that changes a little before each version, as a step changes it."""

    def __init__(self, spec: Spec, device: str):
        import torch

        from learner.model.load import load_model
        from learner.model.policy import Policy
        from learner.ranks.trainer import DTYPES
        from learner.weights.card import Card
        from learner.weights.collective import Broadcasts
        from learner.weights.proof import Proof, perturbed
        from learner.weights.publish import Versions, probe_tokens

        torch.set_num_threads(1)
        model = load_model(spec.model, DTYPES[spec.dtype], "sdpa")
        self._policy = Policy(model.eval()).to(device)
        self._tokens = probe_tokens(PROBE_TOKENS, model.config.vocab_size, 0)
        load = partial(load_model, spec.model, DTYPES[spec.dtype], "sdpa")
        self._proof = Proof(load, perturbed, self._tokens, model.config.vocab_size, device)
        self._device, self._version = device, 0
        import ray

        here = ray.get_runtime_context()
        card = None if device == "cpu" else Card(device)
        self._versions = Versions(here.get_node_id(), here.current_actor, card)
        self._broadcasts = Broadcasts(self._versions, ray.util.get_node_ip_address(), device)
        self._transport = ""

    def blob(self, version: int) -> list:
        """See Versions."""
        return self._versions.blob(version)

    def seat(self, *asked):
        """See Broadcasts."""
        return self._broadcasts.seat(*asked) if self._transport == "collective" else REFUSED

    def publish(self, transport: str) -> Sent:
        """A new version, by that transport. When the clock starts its probe has been scored."""
        import torch

        self._version, self._transport = self._version + 1, transport
        with torch.no_grad():
            for parameter in self._policy.parameters():
                parameter.mul_(0.99)
            row = torch.tensor([self._tokens], device=self._device)
            places = torch.arange(row.shape[1], device=self._device)
            logprobs, _ = self._policy(row, places[None], places[:-1], row[0, 1:])
        live = {name: parameter.detach() for name, parameter in self._policy.model.named_parameters()}
        began = time.monotonic()
        state = self._versions.write(live, self._version)
        gather_s = time.monotonic() - began
        measuring = time.monotonic()
        probe = self._proof.probe(state, tuple(logprobs.tolist()))
        began += time.monotonic() - measuring
        ref = self._versions.ref(self._version, probe)
        return Sent(ref if transport == "shared" else replace(ref, path=""), began, gather_s)


class Timed:
    """An engine that notes when `weights.apply` calls each of its parts, and when that has ended."""

    def __init__(self, engine):
        self._engine = engine
        self.times: dict[str, tuple[float, float]] = {}

    def __getattr__(self, name: str):
        async def timed(*arguments):
            began = time.monotonic()
            result = await getattr(self._engine, name)(*arguments)
            self.times[name] = began, time.monotonic()
            return result

        return timed


class Player:
    """An actor's side: an engine that keeps `generations` going, and takes new weights as `actors.actor` does."""

    def __init__(self, spec: Spec, number: int, files):
        self._spec, self._name = spec, f"actor-{number}"

        async def owner():
            return files

        import ray

        node = ray.get_runtime_context().get_node_id()
        self._transports = transports.Transports(node, self._name, owner)
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
        asked, engine = time.monotonic(), Timed(self._engine)
        async with self._transports.fetched(ref, self._engine, LIMIT_S) as path:
            came = time.monotonic()
            await weights.apply(cast(engines.Engine, engine), ref, path, ref.probe.limit)
            applied = time.monotonic()
        await self._tokens(WARM_TOKENS)
        loading, loaded = engine.times["load"]
        parts = {"send": came - asked, "check": loading - came, "apply": loaded - loading, "prove": applied - loaded}
        by, parts_ms = self._transports.last, {name: 1e3 * value for name, value in parts.items()}
        found = {"applied_at": applied, "by": by, "parts_ms": parts_ms}
        found |= self._clock.figures(came, applied)
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
