"""On a GPU compiled layers, and an optimizer in host memory, train as plain layers and an optimizer there do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.gpu_rank import VOCABULARY
from support.places import ROOT
from support.waiting import deadline_s

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here: run it where there is one"),
]
DEVICE = "cuda"
STATE = 12
"""Bytes of a parameter that AdamW keeps: a copy of the weights, and two moments, in float32."""


def trained(model: Path, **settings) -> dict:
    command = [sys.executable, "-m", "support.gpu_rank", str(model), DEVICE, json.dumps(settings)]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=deadline_s(300), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.1, **shape)
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(model) -> dict:
    return trained(model, compile=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"compile": True},
        {"compile": True, "gradient_checkpointing": True},
        {"compile": False, "offload": "optimizer"},
        {"compile": "auto", "offload": "optimizer"},
    ],
    ids=str,
)
def test_steps_are_those_of_plain_layers_and_an_optimizer_in_host_memory_takes_none_of_the_gpu(model, plain, settings):
    found = trained(model, **settings)
    assert found["compiled"] is (settings["compile"] is not False)
    for ours, theirs in zip(found["steps"], plain["steps"], strict=True):
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=0.05)  # bfloat16
        assert ours["stats"] == pytest.approx(theirs["stats"], rel=0.05, abs=0.05)
    if "offload" in settings:
        assert plain["bytes"] - found["bytes"] > 0.8 * STATE * plain["trained"]
