"""An engine whose core dies says why: in its error, and in the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from actors import engines
from actors.config import EngineSettings, EnvironmentSettings
from actors.engines import vllm_common
from protocols.errors import RedraftError
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm


@pytest.fixture
def frozen():
    """What an engine in this process does to its environment: vLLM's settings are read once, and no more."""
    vllm_common.prepare_process(EngineSettings(), separate=False)
    from vllm import envs

    envs.enable_envs_cache()
    yield
    envs.disable_envs_cache()


@pytest.mark.usefixtures("frozen")
def test_the_error_of_a_core_that_dies_at_its_start_is_told_and_how_far_it_had_come(tmp_path, caplog):
    settings = ModelSettings(make=MakeSettings(seed=0), dtype="float32")
    model = prepare(settings, EnvironmentSettings(name="signs"), tmp_path, print)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    phases: list[str] = []
    engine = EngineSettings(process="separate", max_length=128, max_running=4)
    with caplog.at_level(logging.ERROR, "redraft.engine"), pytest.raises(RedraftError, match="SafetensorError: "):
        asyncio.run(engines.start(model, "float32", engine, seed=0, tell=phases.append))
    assert "SafetensorError" in caplog.text and "load_model" in caplog.text
    assert phases[-1] == "loading weights"
