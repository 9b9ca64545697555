"""The policy: log-probs of chosen tokens under a causal language model, in pieces of bounded memory."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from learner.model.attention import BOUNDS, bounds, used_by
from learner.model.distilled import Distilled, Guide
from learner.model.head import (
    Shape,
    body_of,
    compute_in_float32,
    linear_of,
    logits_of,
    round_first,
    shape_of,
    slices,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = Literal["model", "float32"]


class Policy(nn.Module):
    """A causal language model of transformers, asked only for log-probs.

    Log-probs are those of sampling at `temperature`, or at a token's own, from the whole vocabulary, as the engine
    reports them.
    Submodules are called as modules, so that the hooks by which ZeRO 3 gathers weights run. Rows that hold several
    sequences go through the model as they are only once `packed` is set, for a model that was seen to keep them apart;
    until then each sequence gets a row of its own, padded at the right, which is sound for every causal model.

    With `head` float32 logits are not rounded to the model's type: in bfloat16 that costs .004 nats in the mean at
    logits of deviation 1, .033 at 8 and .12 at 30. The engine's own head does round.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        head: Head = "model",
        packed=False,
    ):
        """Raises SettingError where the model has no body or head that can be asked alone."""
        super().__init__()
        if head == "float32":
            compute_in_float32(linear_of(model), model)
        else:
            round_first(linear_of(model))
        self.model, self.temperature, self.packed = model, temperature, packed
        self.head: Head = head
        self.shape = shape_of(model.config)
        self._takes = _arguments(body_of(model))

    def forward(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor,
        picks_N: Tensor,
        targets_N: Tensor,
        chunks: int = 1,
        temperatures_N: Tensor | None = None,
        guide: Guide | None = None,
    ) -> tuple[Tensor, ...]:
        """Log-prob of each target at the output of flat index `picks`, and the entropy there: float32[N] each. With a
        `guide` also the divergence from it, which then alone has a gradient. `temperatures` are float32[N], where above
        0 in place of the policy's.

        `chunks` pieces are computed one after the other, and again in the backward pass; under ZeRO 3 it must be the
        same on all ranks, for each piece gathers the head.
        """
        hidden_ND = self.hidden(tokens_BS, positions_BS, picks_N)
        temperatures_N = self._temperatures(targets_N, temperatures_N)
        parts = [hidden_ND, targets_N, temperatures_N, *([] if guide is None else [guide.hidden_ND])]
        score = self._score if guide is None else partial(self._distil, guide)
        pieces = zip(*(part.tensor_split(chunks) for part in parts), strict=True)
        if chunks == 1 or not torch.is_grad_enabled():
            results = [score(*piece) for piece in pieces]
        else:
            results = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
        return tuple(torch.cat(found) for found in zip(*results, strict=True))

    def hidden(self, tokens_BS: Tensor, positions_BS: Tensor, picks_N: Tensor) -> Tensor:
        """What the head makes logits of at the flat indices: [N, D]."""
        if not self.packed:
            tokens_BS, positions_BS, picks_N = apart(tokens_BS, positions_BS, picks_N)
        inputs = {"input_ids": tokens_BS, "position_ids": positions_BS, "attention_mask": None, "use_cache": False}
        if used_by(self.model):
            inputs |= bounds(positions_BS)
        body = body_of(self.model)
        hidden_BSD = body(**{name: inputs[name] for name in inputs if name in self._takes}).last_hidden_state
        return hidden_BSD.flatten(0, 1)[picks_N]

    def _temperatures(self, targets_N: Tensor, own_N: Tensor | None) -> Tensor:
        """float32[N]."""
        common_N = torch.full_like(targets_N, self.temperature, dtype=torch.float32)
        return common_N if own_N is None else torch.where(own_N > 0, own_N, common_N)

    def _score(self, hidden_ND: Tensor, targets_N: Tensor, temperatures_N: Tensor) -> tuple[Tensor, Tensor]:
        return Chosen.apply(self._linear(hidden_ND), targets_N, temperatures_N, self.shape)

    def _distil(
        self, guide: Guide, hidden_ND: Tensor, targets_N: Tensor, temperatures_N: Tensor, teacher_ND: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.no_grad():
            teacher_NV = guide.policy._linear(teacher_ND)
        linear_NV = self._linear(hidden_ND)
        return Distilled.apply(linear_NV, teacher_NV, targets_N, temperatures_N, self.shape, guide.measure)

    def _linear(self, hidden_ND: Tensor) -> Tensor:
        linear_NV = linear_of(self.model)(hidden_ND)
        return linear_NV if self.shape.vocabulary is None else linear_NV[:, : self.shape.vocabulary]


def _arguments(body: nn.Module) -> set[str]:
    """Which of the inputs that a policy gives its body takes: recurrent ones know no positions."""
    names = {"input_ids", "position_ids", "attention_mask", "use_cache", *BOUNDS}
    parameters = inspect.signature(body.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return names if anything else names & parameters.keys()


def apart(tokens_BS: Tensor, positions_BS: Tensor, picks_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same tokens with each sequence in a row of its own, padded at the right, and where `picks` are there."""
    starts_BS = positions_BS == 0
    if not starts_BS[:, 1:].any():
        return tokens_BS, positions_BS, picks_N
    rows, places = starts_BS.flatten().cumsum(0) - 1, positions_BS.flatten()
    shape = (int(rows[-1]) + 1, int(places.max()) + 1)
    apart_RW = tokens_BS.new_zeros(shape)
    apart_RW[rows, places] = tokens_BS.flatten()
    positions_RW = torch.arange(shape[1], device=tokens_BS.device).expand(shape)
    return apart_RW, positions_RW, rows[picks_N] * shape[1] + places[picks_N]


class Chosen(torch.autograd.Function):
    """Log-probs of the targets and entropies, float32[N] each, from what the head's linear layer returns, [N, V], of
    which nothing is copied whole, at temperatures float32[N].

    Float32 exists of a few rows at a time; the gradient is written over the input, so that a second backward pass
    through it raises.
    """

    @staticmethod
    def forward(
        ctx, linear_NV: Tensor, targets_N: Tensor, temperatures_N: Tensor, shape: Shape
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for linear_nV, targets_n, temperatures_n in slices(linear_NV, targets_N, temperatures_N):
            logprobs_nV = torch.log_softmax(logits_of(linear_nV, shape) / temperatures_n[:, None], -1)
            logprobs.append(logprobs_nV.gather(-1, targets_n[:, None]).squeeze(-1))
            shares_nV = logprobs_nV.exp()
            # A token that cannot be sampled has no part in the entropy: 0 times minus infinity would be NaN.
            finite_nV = logprobs_nV.clamp_(min=torch.finfo(torch.float32).min)
            entropies.append(-shares_nV.mul_(finite_nV).sum(-1))
        entropy_N = torch.cat(entropies)
        ctx.save_for_backward(linear_NV, targets_N, entropy_N, temperatures_N)
        ctx.shape = shape
        ctx.set_materialize_grads(False)  # mostly nothing is asked of the entropy, and then it costs nothing
        return torch.cat(logprobs), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_N: Tensor | None, bonus_N: Tensor | None) -> tuple[Tensor, None, None, None]:
        linear_NV, targets_N, entropy_N, temperatures_N = ctx.saved_tensors
        gradient_N = torch.zeros_like(entropy_N) if gradient_N is None else gradient_N
        scale_N = ctx.shape.scale / temperatures_N
        bonuses_N = entropy_N if bonus_N is None else bonus_N * scale_N
        rows = (targets_N, gradient_N * scale_N, entropy_N, bonuses_N, temperatures_N)
        for linear_nV, targets_n, factor_n, entropy_n, bonus_n, temperatures_n in slices(linear_NV, *rows):
            logits_nV = logits_of(linear_nV, ctx.shape)
            tempered_nV = logits_nV / temperatures_n[:, None]
            if bonus_N is None:
                slope_nV = torch.softmax(tempered_nV, -1).mul_(-factor_n[:, None])
            else:  # the slope of the entropy H is -p (log p + H)
                slope_nV = torch.log_softmax(tempered_nV, -1)
                shares_nV = slope_nV.exp()
                slope_nV.clamp_(min=torch.finfo(torch.float32).min).add_(entropy_n[:, None]).mul_(shares_nV)
                slope_nV.mul_(-bonus_n[:, None]).sub_(shares_nV.mul_(factor_n[:, None]))
            slope_nV.scatter_add_(-1, targets_n[:, None], factor_n[:, None])
            if ctx.shape.softcap is not None:  # the slope of tanh is 1 - tanh^2
                slope_nV.mul_(1 - (logits_nV / ctx.shape.softcap).square_())
            linear_nV.copy_(slope_nV)
        return linear_NV, None, None, None
