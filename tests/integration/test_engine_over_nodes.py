"""An engine runs on one node: what vLLM's CPU build says where its workers are to be on several, by Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

from actors.config import EnvironmentSettings
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.prove]

TRY = """
import sys, ray
from vllm import LLM
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
parallel = dict(tensor_parallel_size=2, distributed_executor_backend="ray")
LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, **parallel)
"""


def test_the_cpu_build_of_vllm_still_has_no_engines_over_several_nodes_as_the_guide_to_gpus_says(tmp_path):
    settings = ModelSettings(make=MakeSettings(hidden=64, layers=2, heads=2, max_length=64), dtype="float32")
    model = prepare(settings, EnvironmentSettings(name="signs"), tmp_path, print)
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "RAY_AUTH_MODE": "disabled"}
    tried = subprocess.run(
        [sys.executable, "-c", TRY, str(model)],
        env={**ENVIRONMENT, **alone},
        capture_output=True,
        text=True,
        timeout=deadline_s(120),
    )
    assert tried.returncode
    assert tried.stderr.strip().endswith("current platform cpu does not support ray."), tried.stderr
