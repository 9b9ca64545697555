"""What is known of a batch before its first optimizer step: the trainer's own log-probs of its tokens, and which tokens
an objective that judges by the whole batch keeps. Each rank knows it of all tokens: in another epoch another rank may
train one, and a mask by the whole batch must not depend on how it was split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batches.packing import MicroBatch
from learner.objectives.base import Objective

Tensors = Callable[[MicroBatch], tuple[dict[str, Tensor], tuple]]


@dataclass(frozen=True, slots=True)
class Proximal:
    """By the places of the batch's trained tokens."""

    logprobs: Tensor  # float32[T] under the weights as they were
    kept: Tensor | None = None  # bool[T], where the objective has a mask by the whole batch

    def of(self, places_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both of a micro-batch's tokens."""
        return self.logprobs[places_N], None if self.kept is None else self.kept[places_N]


@torch.no_grad()
def look(
    objective: Objective,
    updates: Sequence[Sequence[MicroBatch]],
    minibatches: int,
    policy: Callable[..., tuple[Tensor, ...]],
    tensors: Tensors,
    device: str,
) -> Proximal | None:
    """Of the optimizer steps of a batch, of which the first `minibatches` hold each token once; `tensors` are what
    `policy` is called with. A collective. None where nothing needs it: a batch that is one optimizer step has these
    log-probs when it is trained."""
    if not objective.proximal or (len(updates) == 1 and not objective.masks_batch):
        return None
    masks = objective.masks_batch  # by log prox/mu of what was sampled
    known_T = torch.zeros((3 if masks else 1, _size(chain.from_iterable(updates), device)), device=device)
    for micro in chain.from_iterable(updates[:minibatches]):
        named, inputs = tensors(micro)
        trained_N = named["coefficients"] > 0  # a micro-batch without work has a place that is not its own
        rows = [logprobs_N := policy(*inputs)[0][trained_N].float()]
        if masks:
            sampled_N = named["sampled"][trained_N]
            rows += [(logprobs_N - named["sampler"][trained_N]).where(sampled_N, 0.0), sampled_N.float()]
        known_T[:, named["places"][trained_N]] = torch.stack(rows)
    dist.all_reduce(known_T)
    if not masks:
        return Proximal(known_T[0])
    prox_T, log_weights_T, counted_T = known_T
    kept_T = torch.ones_like(counted_T, dtype=torch.bool)
    kept_T[counted_T > 0] = objective.kept(log_weights_T[counted_T > 0])
    return Proximal(prox_T, kept_T)


def _size(micros: Iterable[MicroBatch], device: str) -> int:
    size = torch.tensor([1 + max(int(micro.places.max()) for micro in micros)], device=device)
    dist.all_reduce(size, dist.ReduceOp.MAX)
    return int(size)
