"""On one GPU an engine maps the learner's weights, and gives the memory of its cache away while it sleeps."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import card_house

from actors import engines
from actors.config import EngineSettings, EnvironmentSettings, SamplingSettings
from actors.weights import Proved
from learner.weights.proof import perturbed
from protocols.weights import Probe
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here: run it where there is one"),
]
TOKENS = np.random.default_rng(0).integers(0, 40, 32).astype(np.int32)
LIMIT = 0.2  # of the probe: digests and what is read back prove the rest
SHARE = 0.3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = ModelSettings(make=MakeSettings(hidden=256, heads=4, max_length=512), dtype="bfloat16")
    return prepare(made, EnvironmentSettings(name="signs"), tmp_path_factory.mktemp("model"), print)


@pytest.fixture(scope="module")
def running(model):
    """(engine, run): an engine that may sleep, and the loop that it lives on."""
    settings = EngineSettings(max_length=512, max_running=16, gpu_memory=SHARE)
    with asyncio.Runner() as runner:
        engine = runner.run(engines.start(model, "bfloat16", settings, seed=0, sleeps=True))
        yield engine, runner.run
        runner.run(engine.close())


def logprobs(state: dict[str, torch.Tensor], model) -> tuple[float, ...]:
    from learner.model.load import load_model

    exact = load_model(str(model), torch.float32, "eager", {name: part.float() for name, part in state.items()})
    ids = torch.tensor(TOKENS.tolist())
    with torch.no_grad():
        found = exact(ids[None]).logits[0].log_softmax(-1)
    return tuple(found[:-1].gather(-1, ids[1:, None])[:, 0].tolist())


def test_versions_on_the_learner_s_gpu_are_mapped_and_proved_while_the_engine_generates(running, model, tmp_path):
    from safetensors.torch import save_file

    engine, run = running
    learner, transports, proved = card_house.Learner(None), card_house.transports(), Proved(engine)

    async def take(ref):
        playing = asyncio.ensure_future(proved.generate(TOKENS, SamplingSettings(max_tokens=400)))
        async with transports.fetched(ref, proved, 60.0) as path:
            await proved.apply(ref, path, LIMIT)
        await playing
        return path

    state = load_file(model / "model.safetensors")
    for seed in range(4):
        state = perturbed(state, 0.05, seed)
        file = tmp_path / f"{seed}.safetensors"
        save_file(state, file)
        ref = learner.write(file, Probe(tuple(TOKENS.tolist()), logprobs(state, model), LIMIT))
        if seed:  # the first lies in the host's memory, always
            assert ref.handle and run(take(ref)) is None
            assert transports.last == "shared" and engine.version == ref.version
    learner.close()


def test_an_engine_that_sleeps_gives_its_cache_away_and_generates_afterwards_as_before(running):
    engine, run = running
    sleeper: Any = engine
    greedy = SamplingSettings(max_tokens=16, temperature=0.0)
    before = run(engine.generate(TOKENS, greedy))
    awake, total = torch.cuda.mem_get_info()
    for _ in range(2):
        run(sleeper.sleep())
        asleep, _ = torch.cuda.mem_get_info()
        assert asleep - awake > 0.5 * SHARE * total
        run(sleeper.wake())
        assert torch.cuda.mem_get_info()[0] < awake + 0.1 * SHARE * total
        assert run(engine.generate(TOKENS, greedy)).ids.tolist() == before.ids.tolist()
