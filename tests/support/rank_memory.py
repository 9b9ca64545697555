"""A rank in a process of its own that tells the bytes of a parameter that a training step takes, as JSON:
python -m support.rank_memory RANK RANKS PORT MODEL STAGE:DTYPE[:OFFLOAD]..."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings

import torch
import torch.distributed as dist

from learner.config import LearnerSettings
from learner.ranks.trainer import Trainer, join_ranks
from support.summing_house import micros


def tensors() -> int:
    """Bytes of all that are alive."""
    gc.collect()
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    found += [one.grad for one in found if one.is_leaf and one.grad is not None]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}
    return sum(size for place, size in storages.items() if place)


def taken(path: str, rank: int, ranks: int, zero: str, dtype: str, *offload: str) -> float:
    """Bytes a parameter when the optimizer has its state and the gradients are still there."""
    before, found = tensors(), []
    choice = {"zero": int(zero), "ranks": ranks} | ({"offload": offload[0], "gpus": 1} if offload else {})
    settings = LearnerSettings(attention="eager", objective={"name": "sft"}, optimizer={"lr": 1e-3}, **choice)
    trainer = Trainer(settings, path, steps=3, dtype=dtype)
    trainer.training.optimizer.register_step_post_hook(lambda *_: found.append(tensors() - before))
    trainer.step(micros(2, rank, ranks), 0)
    count = sum(getattr(one, "ds_numel", one.numel()) for one in trainer.training.policy.parameters())
    trainer.training.free()
    return found[0] / count


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    rank, ranks, port = map(int, sys.argv[1:4])
    join_ranks(rank, ranks, ("127.0.0.1", port), "cpu", 60)
    print(json.dumps({case: taken(sys.argv[4], rank, ranks, *case.split(":")) for case in sys.argv[5:]}), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is told; what libraries do at the end of an interpreter, one rank before the other, may abort
