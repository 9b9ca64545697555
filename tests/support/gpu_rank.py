"""A rank of the learner in a process of its own: `python -m support.gpu_rank MODEL DEVICE SETTINGS`, which are JSON.

Trains three batches of other lengths in bfloat16; its last line says what each found, whether layers are compiled, how
many parameters are trained, and the bytes that the GPU holds afterwards.
"""

from __future__ import annotations

import json
import sys

import torch

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.ranks.trainer import Trainer, join_ranks
from support.dialogues import groups
from support.ports import free_port

VOCABULARY = 40


def main(model: str, device: str, chosen: str) -> dict:
    base = {"row_tokens": 64, "micro_tokens": 64, "optimizer": {"lr": 1e-3}, "gpus": 1}
    settings = LearnerSettings(**(base | json.loads(chosen)))
    join_ranks(0, 1, ("127.0.0.1", free_port()), device, 60)
    trainer = Trainer(settings, model, steps=3, dtype="bfloat16", device=device)
    trainer.examine(0)
    made, found = groups(9, vocabulary=VOCABULARY), []
    for step, size in enumerate((2, 3, 4)):
        result = trainer.step(prepare(made[step * 3 : step * 3 + size], step, settings).micros[0], step)
        assert result.applied
        found.append({"stats": result.stats.tolist(), "norm": result.gradient_norm})
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    return {"steps": found, "compiled": trainer.compiled, "trained": trainer.training.trained, "bytes": held}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
