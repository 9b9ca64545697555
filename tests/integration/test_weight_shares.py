"""With tensor parallelism the workers of an engine prove together that they hold what was loaded."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.published import Published
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors import engines, weights
from actors.config import EngineSettings, EnvironmentSettings
from actors.engines import vllm_common
from learner.model.load import load_model
from learner.weights.proof import Proof, perturbed
from protocols.errors import WeightsError
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm
VOCABULARY = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One key-value head, which both workers hold, and biases."""
    made = ModelSettings(make=MakeSettings(seed=5, hidden=64, layers=2, heads=2, max_length=64), dtype="float32")
    folder = prepare(made, EnvironmentSettings(name="signs"), tmp_path_factory.mktemp("model"), print)
    vocabulary = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    torch.manual_seed(5)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    network = Qwen2ForCausalLM(config)
    for name, part in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(part)
    network.save_pretrained(folder)
    return folder


@pytest.mark.prove
def test_each_of_two_workers_proves_its_share_and_one_that_skips_a_load_is_found_out(model, monkeypatch):
    monkeypatch.setattr(vllm_common, "WORKER_EXTENSION", "support.skipping_worker.Skipping")
    tokens = tuple(np.random.default_rng(0).integers(0, VOCABULARY, 32).tolist())
    proof = Proof(partial(load_model, str(model), torch.float32, "sdpa"), perturbed, tokens, VOCABULARY)
    states = [load_file(model / "model.safetensors")]
    states.append(perturbed(states[0], 0.01, 0))
    made = [Published(state, number, proof.probe_of(state)) for number, state in enumerate(states)]
    settings = EngineSettings(process="separate", tensor_parallel=2, max_length=64, max_running=4, kv_cache_gb=0.1)

    async def scenario() -> None:
        engine: Any = await engines.start(model, "float32", settings, seed=0)
        try:
            for one in (made[1], made[0]):
                difference = await weights.apply(engine, one.ref, one.path, one.ref.probe.limit)
                print(f"difference {difference:.1e}, limit {one.ref.probe.limit:.1e}")
                for unit in weights.UNITS:
                    live = await engine.sums(unit)
                    assert live.times == 2
            for rank in (0, 1):
                await engine._llm.collective_rpc("skip", args=(rank,))
                with pytest.raises(WeightsError, match="live parameters"):
                    await weights.apply(engine, made[1].ref, made[1].path, float("inf"))
                await engine._llm.collective_rpc("skip", args=(None,))
                await weights.apply(engine, made[0].ref, made[0].path, made[0].ref.probe.limit)
        finally:
            await engine.close()

    asyncio.run(scenario())
