"""Kinds of attention on the same packed rows: forward and backward of a policy, one kind after the other in each round.

    python -m benchmarks.attention [--device cpu|cuda] [--rounds N] [--quick]

`sdpa` and `eager` make a mask [B, 1, S, S]; `varlen` none (learner/model/attention.py). On a CPU in CPU seconds of one
thread and in float32, on CUDA in seconds and in bfloat16, without eager. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learner.model.attention import VARLEN, register
from learner.model.policy import Policy

ROUNDS = 5  # beside one that warms up
QUICK = {"cpu": 2, "cuda": 3}
"""How many of the first works are enough to see who is ahead."""


class Work(NamedTuple):
    """A model's width, layers and heads; rows, their tokens, and the mean length of sequences (exponential)."""

    hidden: int
    layers: int
    heads: int
    rows: int
    tokens: int
    mean: int

    @property
    def name(self) -> str:
        return f"width {self.hidden}, {self.rows} x {self.tokens} tokens, sequences of {self.mean}"


WORKS = {
    "cpu": (
        Work(96, 3, 3, 8, 256, 60),
        Work(256, 4, 4, 2, 1024, 100),
        Work(576, 6, 9, 2, 1024, 150),
        Work(256, 4, 4, 1, 4096, 600),
    ),
    "cuda": (Work(1024, 8, 16, 4, 4096, 500), Work(1024, 8, 16, 1, 16384, 1000), Work(1024, 8, 16, 1, 32768, 2000)),
}


def policy(work: Work, attention: str, device: str) -> Policy:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=work.hidden,
        intermediate_size=4 * work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        num_key_value_heads=work.heads,
        vocab_size=512,
        max_position_embeddings=work.tokens,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return Policy(model.to(device, torch.float32 if device == "cpu" else torch.bfloat16), packed=True)


def packed(work: Work) -> Tensor:
    """Positions, int64[rows, tokens]."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(work.rows):
        row: list[int] = []
        while len(row) < work.tokens:
            row += range(min(work.tokens - len(row), max(4, int(random.exponential(work.mean)))))
        rows.append(row)
    return torch.tensor(rows)


def race(work: Work, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a pass by kind of attention, medians."""
    kinds = ("sdpa", VARLEN, "eager")[: 3 if device == "cpu" else 2]
    positions = packed(work).to(device)
    tokens = torch.randint(512, positions.shape, device=device)
    picks = torch.arange(positions.numel() - 1, device=device)
    policies = {kind: policy(work, kind, device) for kind in kinds}
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 1):
        for kind, one in policies.items():
            began = clock()
            logprobs, _ = one(tokens, positions, picks, tokens.flatten()[1:])
            logprobs.mean().backward()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[kind].append(clock() - began)
    return {kind: round(1e3 * statistics.median(found[1:]), 1) for kind, found in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=WORKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="the first works only; under a minute on a busy CPU")
    chosen = parser.parse_args()
    device = chosen.device
    torch.set_num_threads(1)
    register()
    found = {}
    for work in WORKS[device][: QUICK[device] if chosen.quick else None]:
        found[work.name] = race(work, device, chosen.rounds)
        print(f"{work.name}: {found[work.name]} ms", file=sys.stderr, flush=True)
    print(json.dumps({"device": device, "rounds": chosen.rounds, "ms": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
