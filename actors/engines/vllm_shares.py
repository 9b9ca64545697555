"""Runs inside vLLM's worker: which parameters of a model it holds alone, and which other workers hold as well.

With tensor parallelism each worker has a part of the large matrices and a copy of the small ones. To prove that all
workers together hold what was loaded, each part counts once: so it has to be known how many workers hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

UNKNOWN = 0
WHOLE = ("vllm.model_executor.layers.layernorm", "torch.nn.")  # modules of which each worker has a copy


def shares(model: nn.Module, loaded: Collection[str]) -> Iterator[tuple[int, Tensor]]:
    """Each parameter that the model computes with, and each buffer that was `loaded`, in parts: how many workers hold
    the same part (UNKNOWN where this is not known of its module), and the part."""
    workers, seen = get_tensor_model_parallel_world_size(), set[int]()
    for path, module in model.named_modules():
        buffers = ((name, part) for name, part in module.named_buffers(recurse=False) if f"{path}.{name}" in loaded)
        for name, part in chain(module.named_parameters(recurse=False), buffers):
            if id(part) in seen:
                continue
            seen.add(id(part))
            yield from [(1, part)] if workers == 1 else _parts(module, name, part, workers)


def _parts(module: nn.Module, name: str, part: Tensor, workers: int) -> list[tuple[int, Tensor]]:
    split = isinstance(module, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding)
    if split and module.tp_size == workers:
        if isinstance(module, QKVParallelLinear):
            queries = module.num_heads * module.head_size
            return [(1, part[:queries]), (module.num_kv_head_replicas, part[queries:])]
        return [(workers if isinstance(module, RowParallelLinear) and name != "weight" else 1, part)]
    whole = split or isinstance(module, ReplicatedLinear) or type(module).__module__.startswith(WHOLE)
    return [(workers if whole else UNKNOWN, part)]
