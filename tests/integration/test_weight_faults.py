"""The proof of weights is proved: versions are pushed into a real engine, many with a fault, while it generates.

Each fault is named by the push that has it, no answer gets out in which wrong weights had a part, and no push without a
fault is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from support.published import Published

from actors import engines
from actors.config import EngineSettings, EnvironmentSettings, SamplingSettings
from actors.weights import Proved
from learner.lora_config import LoraSettings
from learner.model.load import load_model
from learner.model.lora import Adapter
from learner.model.policy import Policy
from learner.weights.proof import Proof, perturbed, scored
from protocols.broadcast import PIECE_BYTES, Group, Seat, store_at
from protocols.errors import WeightsError
from protocols.turns import Stop
from protocols.weights import Probe
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm

HEAD = "model.embed_tokens.weight"  # which is tied
STATES, ADAPTERS, VOCABULARY = 5, 3, 40
STRENGTH = 0.02  # by which versions differ: about as much as a step of training at a high rate changes weights
HOST = "127.0.0.1"
PLAYED = 3  # answers under way at any time


@dataclass(frozen=True, slots=True)
class Learned:
    """Weights, or with `adapter` its own, and what an engine is to find of them."""

    state: dict[str, torch.Tensor]
    probe: Probe
    adapter: Adapter | None = None


class Faulty:
    """An engine of which a load, and what can be read back of it, may be made to fail."""

    def __init__(self, engine: engines.Engine):
        self.inner: Any = engine
        self.load = engine.load
        self.readable = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def sums(self, unit):
        return await self.inner.sums(unit) if self.readable else None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    settings = ModelSettings(make=MakeSettings(seed=4, max_length=256), dtype="float32")
    return prepare(settings, EnvironmentSettings(name="signs"), tmp_path_factory.mktemp("model"), print)


@pytest.fixture(scope="module")
def learned(model) -> list[Learned]:
    """Versions of the weights, each a little change of the one before, and adapters of the first."""
    tokens = tuple(np.random.default_rng(0).integers(0, VOCABULARY, 32).tolist())
    proof = Proof(partial(load_model, str(model), torch.float32, "sdpa"), perturbed, tokens, VOCABULARY)
    state, made = load_file(model / "model.safetensors"), []
    for seed in range(STATES):
        made.append(Learned(state, proof.probe_of(state)))
        state = perturbed(state, STRENGTH, seed)
    for seed in range(ADAPTERS):
        adapter = Adapter(LoraSettings(rank=2), str(model), seed)
        base = adapter.merged({}, torch.float32)
        adapter.add(base)
        trained = {name: part.detach() for name, part in adapter.trained(base).items()}
        state = adapter.perturbed(trained, 0.1, seed)
        adapted = Proof(partial(adapter.merged, dtype=torch.float32), adapter.perturbed, tokens, VOCABULARY)
        made.append(Learned(state, adapted.probe_of(state), adapter))
    return made


@dataclass(frozen=True, slots=True)
class Answer:
    """One that got out. `versions` are those of its stretches."""

    prompt: np.ndarray
    made: engines.Completion

    @property
    def versions(self) -> set[int]:
        return {version for _, version in self.made.versions}


class Sender:
    """Broadcasts bytes, as they are, to the worker of an engine."""

    def __init__(self) -> None:
        self._store = store_at(dist, HOST, 0, leads=True)
        self._group: Group | None = None

    async def send(self, engine: Any, data: bytes) -> None:
        await engine.ask("redraft_receive", asdict(Seat(1, HOST, self._store.port, 2, 1, len(data), PIECE_BYTES)))
        await asyncio.to_thread(self._send, torch.frombuffer(bytearray(data), dtype=torch.uint8))
        while (states := await engine.ask("redraft_received")) == [None]:
            await asyncio.sleep(0)
        assert states == [""]

    def _send(self, data: torch.Tensor) -> None:
        if self._group is None:
            self._group = Group(dist, self._store, 1, 0, 2, HOST, "cpu")
        self._group.broadcast(data, PIECE_BYTES, "cpu")


class House:
    """An engine in play, and versions that are pushed to it, some by broadcast."""

    def __init__(self, engine: engines.Engine, learned: list[Learned], folder: Path, seed: int):
        self._engine, self._learned, self._folder = Faulty(engine), learned, folder
        self._random = np.random.default_rng(seed)
        self._proved, self._sender = Proved(self._engine), Sender()
        self._now, self._version = learned[0], 0
        self.pushed: dict[int, Learned] = {}
        self.wrong: set[int] = set()  # versions that were pushed with a fault
        self.answers: list[Answer] = []
        self.counts: Counter[str] = Counter()

    async def run(self, pushes: int) -> None:
        """So many pushes, every other one with a fault, after which the engine is as a new actor's would be. First of
        weights, then of adapters of those that were there at the start."""
        await self._push(self._learned[1])
        await self._pushes(pushes // 2, self._learned[:STATES], WHOLE)
        await self._push(self._learned[0])
        await self._pushes(pushes // 2, self._learned[STATES:], ADAPTED)

    async def _pushes(self, pushes: int, pool: list[Learned], faults: Sequence[str]) -> None:
        for number in range(pushes):
            async with self._playing():
                fault = list(faults)[number // 2 % len(faults)] if number % 2 else None
                await self._push(self._other(pool, self._now), fault, pool)
            if number % 2:
                self._proved = Proved(self._engine)
                await self._push(self._other(pool, self._now))

    @contextlib.asynccontextmanager
    async def _playing(self):
        """Answers are under way meanwhile; in the end they are waited for."""
        tasks, engine = [asyncio.ensure_future(self._play(self._proved)) for _ in range(PLAYED)], self._proved
        while engine.running < PLAYED and not any(task.done() for task in tasks):
            await asyncio.sleep(0)
        yield
        await asyncio.gather(*tasks)

    async def _play(self, engine: Proved) -> None:
        prompt = self._random.integers(0, VOCABULARY, 8).astype(np.int32)
        made = await engine.generate(prompt, SamplingSettings(max_tokens=int(self._random.integers(4, 24))))
        if made.stop is not Stop.ABORTED:
            self.answers.append(Answer(prompt, made))

    async def _push(self, new: Learned, fault: str | None = None, pool: Sequence[Learned] = ()) -> None:
        self._version, self._pool = self._version + 1, pool
        self.pushed[self._version] = new
        made = Published(new.state, self._version, new.probe, new.adapter)
        path, told = made.path, ""
        self._engine.load, self._engine.readable = self._engine.inner.load, True
        if fault is not None:
            self.wrong.add(self._version)
            self._engine.readable = bool(self._random.integers(2))
            path, told = FAULTS[fault](self, made, new)
        sent = path.stat().st_size and self._random.integers(2)  # nothing can be broadcast of an empty file
        if sent:
            await self._sender.send(self._engine, path.read_bytes())
        try:
            await self._proved.apply(made.ref, None if sent else path, made.ref.probe.limit)
        except WeightsError as error:
            assert fault is not None, f"a false alarm: {error}"
            assert re.search(f"version {self._version}: .*({told})", str(error)), f"{fault}: {error}"
            self.counts[fault] += 1
        else:
            assert fault is None, f"{fault} was not found out"
            self._now = new
        await self._engine.ask("redraft_drop")

    def _other(self, pool: Sequence[Learned], than: Learned) -> Learned:
        choice = [one for one in pool if one is not than]
        return choice[self._random.integers(len(choice))]

    # The faults: each returns the path that is applied, and what the error says.

    def flipped(self, made: Published, new: Learned) -> tuple[Path, str]:
        data = made.bytes()
        data[self._random.integers(len(data))] ^= 1 << int(self._random.integers(8))
        return self._written(data), "is not the one that was published"

    def truncated(self, made: Published, new: Learned) -> tuple[Path, str]:
        data = made.bytes()
        return self._written(data[: self._random.integers(len(data))]), "bytes have come"

    def unwritten(self, made: Published, new: Learned) -> tuple[Path, str]:
        data = made.bytes()
        kept = int(self._random.integers(len(data) // 2))
        return self._written(data[:kept] + bytes(len(data) - kept)), "is not the one that was published"

    def swapped(self, made: Published, new: Learned) -> tuple[Path, str]:
        old = self._other(self._pool, new)
        data = Published(old.state, self._version - 1, old.probe, old.adapter).bytes()
        if len(data) == made.ref.size_bytes and self._random.integers(2):  # or under the header of the new one
            start = 8 + int.from_bytes(data[:8], "little")
            data[:start] = made.bytes()[:start]
        return self._written(data), "is not the one that was published|bytes have come"

    def old_head(self, made: Published, new: Learned) -> tuple[Path, str]:
        mixed = self._folder / "mixed.safetensors"
        save_file(new.state | {HEAD: self._now.state[HEAD]}, mixed)
        return self._loading(made, mixed)

    def other(self, made: Published, new: Learned) -> tuple[Path, str]:
        old = self._other(self._pool, new)
        path = self._folder / "old.safetensors"
        path.write_bytes(Published(old.state, self._version - 1, old.probe, old.adapter).bytes())
        return self._loading(made, path)

    def skipped(self, made: Published, new: Learned) -> tuple[Path, str]:
        inner = self._engine.inner

        async def load(path: Path, version: int) -> None:
            def skip() -> None:
                inner._llm.set_weight_version(str(version))
                inner.version = version

            await inner._do(skip)

        self._engine.load = load
        return made.path, AFTER

    def _loading(self, made: Published, other: Path) -> tuple[Path, str]:
        load = self._engine.inner.load
        self._engine.load = lambda path, version: load(other, version)
        return made.path, AFTER

    def _written(self, data: bytes | bytearray) -> Path:
        path = self._folder / "damaged.safetensors"
        path.write_bytes(data)
        return path


AFTER = "live parameters are not|does not compute with these weights"
FAULTS: dict[str, Callable[[House, Published, Learned], tuple[Path, str]]] = {
    "a flipped bit": House.flipped,
    "a truncated file": House.truncated,
    "a bucket that was not written": House.unwritten,
    "another version's bytes": House.swapped,
    "an old head": House.old_head,
    "another version is loaded": House.other,
    "a worker that skips one": House.skipped,
    "an adapter that is never loaded": House.skipped,
}
WHOLE = [fault for fault in FAULTS if fault != "an adapter that is never loaded"]
ADAPTED = [fault for fault in FAULTS if fault not in ("an old head", "a worker that skips one")]


@pytest.mark.parametrize("pushes", [200, pytest.param(10_000, marks=[pytest.mark.prove, pytest.mark.timeout(7200)])])
def test_each_fault_is_named_by_its_push_and_no_answer_gets_out_that_wrong_weights_made(
    model, learned, tmp_path, pushes
):
    settings = EngineSettings(process="in_process", max_length=64, max_running=8, kv_cache_gb=0.1)
    with asyncio.Runner() as runner:
        engine = runner.run(engines.start(model, "float32", settings, seed=0))
        house = House(engine, learned, tmp_path, pushes)
        runner.run(house.run(pushes))
        runner.run(engine.close())
    print(f"{len(house.pushed)} pushes; faults named: {dict(house.counts)}; {len(house.answers)} answers got out")
    assert set(house.counts) == set(FAULTS) and sum(house.counts.values()) == len(house.wrong) == pushes // 2
    assert len(house.answers) > pushes
    assert not house.wrong & set().union(*(answer.versions for answer in house.answers))
    check_answers(model, house)


def check_answers(model: Path, house: House) -> None:
    """Answers that one version made have its log-probs."""
    whole = [answer for answer in house.answers if len(answer.versions) == 1]
    for answer in whole[:: max(1, len(whole) // 30)]:
        (version,) = answer.versions
        learned = house.pushed[version]
        merged = learned.adapter and learned.adapter.merged(learned.state, torch.float32)
        policy = Policy((merged or load_model(str(model), torch.float32, "sdpa", learned.state)).eval())
        ids = torch.tensor(np.concatenate((answer.prompt, answer.made.ids)))[None]
        expected = scored(policy, ids, torch.float32, "cpu")[0, len(answer.prompt) - 1 :]
        assert np.abs(answer.made.logprobs - expected).max() < 1e-4, f"version {version}"
