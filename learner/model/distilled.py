"""How far a model is from its teacher at each token, of which no more than a few rows of logits are float32 at once.

SDPO (arXiv 2601.20802): both distributions are looked at where the model's own K likeliest tokens are, and all others
are one more outcome. The teacher is a constant: nothing of the gradient goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learner.measure import Measure
from learner.model.head import Shape, logits_of, slices

if TYPE_CHECKING:
    from learner.model.policy import Policy

LOWEST = torch.finfo(torch.float32).min  # for minus infinity: 0 times that would be NaN


@dataclass(frozen=True, slots=True)
class Guide:
    """A teacher that has read its view: the policy that it is, and its hidden states before each of N targets."""

    policy: Policy
    hidden_ND: Tensor
    measure: Measure


def divergence_of(logits_NV: Tensor, teacher_NV: Tensor, measure: Measure) -> Tensor:
    """float32[N] of logits in nats, with a gradient to the first."""
    own_NV = torch.log_softmax(logits_NV, -1).clamp(min=LOWEST)
    teacher_NV = torch.log_softmax(teacher_NV.detach(), -1).clamp(min=LOWEST)
    top_NK = own_NV.detach().topk(min(measure.top, own_NV.shape[-1]), -1).indices
    own, teacher = _outcomes(own_NV, top_NK), _outcomes(teacher_NV, top_NK)
    if measure.divergence == "reverse":
        return _kl(own, teacher)
    if measure.divergence == "forward":
        return _kl(teacher, own)
    middle = torch.logaddexp(own, teacher) - torch.log(own.new_tensor(2.0))
    return (_kl(own, middle) + _kl(teacher, middle)) / 2


def _outcomes(logprobs_NV: Tensor, top_NK: Tensor) -> Tensor:
    """Log-probs of the K tokens, and of any other where there is another."""
    chosen_NK = logprobs_NV.gather(-1, top_NK)
    if top_NK.shape[-1] == logprobs_NV.shape[-1]:
        return chosen_NK
    others_N = logprobs_NV.scatter(-1, top_NK, LOWEST).logsumexp(-1, keepdim=True)
    return torch.cat([chosen_NK, others_N], -1)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    return (left.exp() * (left - right)).sum(-1)


class Distilled(torch.autograd.Function):
    """Log-probs of the targets, entropies and divergences, float32[N] each, from what two heads' linear layers return,
    [N, V]. Only divergences have a gradient; it is written over the first input, as that of `Chosen`."""

    @staticmethod
    def forward(ctx, linear_NV, teacher_NV, targets_N, temperatures_N: Tensor, shape: Shape, measure: Measure):
        found = []
        for linear_nV, teacher_nV, targets_n, temperatures_n in slices(
            linear_NV, teacher_NV, targets_N, temperatures_N
        ):
            both = (logits_of(one, shape) / temperatures_n[:, None] for one in (linear_nV, teacher_nV))
            logits_nV, teacher_logits_nV = both
            logprobs_nV = torch.log_softmax(logits_nV, -1)
            entropy_n = -(logprobs_nV.exp() * logprobs_nV.clamp(min=LOWEST)).sum(-1)
            chosen_n = logprobs_nV.gather(-1, targets_n[:, None]).squeeze(-1)
            found.append((chosen_n, entropy_n, divergence_of(logits_nV, teacher_logits_nV, measure)))
        logprob_N, entropy_N, divergence_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(linear_NV, teacher_NV, temperatures_N)
        ctx.shape, ctx.measure = shape, measure
        ctx.mark_non_differentiable(logprob_N, entropy_N)
        return logprob_N, entropy_N, divergence_N

    @staticmethod
    @once_differentiable
    def backward(ctx, _logprobs, _entropies, gradient_N: Tensor):
        linear_NV, teacher_NV, temperatures_N = ctx.saved_tensors
        wholes = (teacher_NV, gradient_N, temperatures_N)
        for linear_nV, teacher_nV, gradient_n, temperatures_n in slices(linear_NV, *wholes):
            with torch.enable_grad():
                wide_nV = linear_nV.detach().float().requires_grad_()
                logits_nV = logits_of(wide_nV, ctx.shape) / temperatures_n[:, None]
                teacher_logits_nV = logits_of(teacher_nV, ctx.shape) / temperatures_n[:, None]
                divergence_n = divergence_of(logits_nV, teacher_logits_nV, ctx.measure)
                (slope_nV,) = torch.autograd.grad(divergence_n, wide_nV, gradient_n)
            linear_nV.copy_(slope_nV)
        return linear_NV, None, None, None, None, None
