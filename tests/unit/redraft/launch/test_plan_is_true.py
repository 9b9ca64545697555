"""What `redraft plan` counts of a parameter is what a rank under DeepSpeed really keeps of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.places import PYTHONPATH
from support.ports import free_port
from support.processes import start
from support.waiting import deadline_s
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.ranks.stages import stage_of
from redraft.launch.plan import _gradients, _in_host, _optimizer

STAGES = [f"{zero}:{dtype}" for dtype in ("bfloat16", "float32") for zero in (0, 1, 2, 3)]
OFFLOADED = "bfloat16:optimizer"
CASES = {
    1: ["1:bfloat16", "1:float32", f"1:{OFFLOADED}", f"3:{OFFLOADED}"],
    2: [*STAGES, f"1:{OFFLOADED}", f"3:{OFFLOADED}"],
}
"""By number of ranks: one has nothing to shard, and runs the same whatever is set."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[str, int]:
    """Where it is, and its number of parameters."""
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    made, path = Qwen2ForCausalLM(config), str(tmp_path_factory.mktemp("model"))
    made.save_pretrained(path)
    return path, made.num_parameters()


def taken(path: str, ranks: int) -> list[dict[str, float]]:
    """What each rank says."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    port = str(free_port())
    commands = [
        [sys.executable, "-m", "support.rank_memory", str(rank), str(ranks), port, path, *CASES[ranks]]
        for rank in range(ranks)
    ]
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [start(command, **how) for command in commands]
    said = [process.communicate(timeout=deadline_s(120)) for process in started]
    assert not any(process.returncode for process in started), said
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


@pytest.mark.parametrize("ranks", CASES)
def test_a_rank_keeps_as_many_bytes_of_a_parameter_as_planned(model, ranks):
    path, parameters = model
    for found in taken(path, ranks):
        for case in CASES[ranks]:
            zero, dtype, *offload = case.split(":")
            width = 2 if dtype == "bfloat16" else 4
            stage = stage_of(int(zero), ranks, dtype == "float32", bool(offload))
            shares = [_gradients, _in_host if offload else _optimizer]
            if offload and stage == 3:
                shares.remove(_gradients)
            planned = sum(share(parameters, width, stage, ranks)[0] for share in shares) / parameters
            planned += width / ranks if stage == 3 else width
            bucket = 4 if stage == 3 else 0  # of no parameter's, and always there
            assert found[case] - bucket == pytest.approx(planned, rel=0.02), case
