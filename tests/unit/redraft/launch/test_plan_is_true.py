"""What `redraft plan` counts of a parameter is what a rank under DeepSpeed really keeps of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.places import PYTHONPATH
from support.waiting import deadline_s
from transformers import Qwen2Config, Qwen2ForCausalLM

from redraft.launch.plan import BUCKET, _gradients, _optimizer

CASES = [f"{zero}:{dtype}" for dtype in ("bfloat16", "float32") for zero in (0, 1, 2, 3)]


def test_a_rank_keeps_as_many_bytes_of_a_parameter_as_planned(tmp_path):
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "support.rank_memory", str(tmp_path), *CASES],
        env=os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=deadline_s(120),
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    for case in CASES:
        zero, width = int(case[0]), 2 if case.endswith("bfloat16") else 4
        planned = width + _gradients(1, width, zero, 1)[0] + _optimizer(1, width, zero, 1)[0]
        bucket = 4 * BUCKET / model.num_parameters() if zero == 3 else 0  # of no parameter's, and always there
        assert found[case] - bucket == pytest.approx(planned, rel=0.02), case
