"""The head: which module of a causal model makes the hidden states, and how logits are made of them.

Families differ in what they do around the head's linear layer: they scale, they cap with tanh, they cut off ids that
only pad the vocabulary. What each does is named in its text config; the self-test at the start of a run compares the
outcome with the model's own forward, so that a family unknown here is refused, not trained on wrong numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from protocols.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # Granite and MiniCPM, Inkling
MULTIPLIES_BY_SCALING = ("hyperclovax",)  # a Granite in all but the direction of `logits_scaling`
PIECE = 1 << 22  # elements of the head's weight that are float32 at once
SLICE = 1 << 22  # logits that are float32 at once


@dataclass(frozen=True, slots=True)
class Shape:
    """logits = softcap * tanh(scale * linear(hidden) / softcap), of the first `vocabulary` ids; None leaves out."""

    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int | None = None


def shape_of(config) -> Shape:
    """How the models of this transformers config make logits of what their head's linear layer returns."""
    text = config.get_text_config()

    def given(names: tuple[str, ...]) -> list[float]:
        return [value for name in names if isinstance(value := getattr(text, name, None), int | float) and value]

    scale = 1.0
    for factor in given(FACTORS):
        scale *= factor
    for divisor in given(DIVISORS):
        scale = scale * divisor if text.model_type in MULTIPLIES_BY_SCALING else scale / divisor
    softcap = next(iter(given(SOFTCAPS)), None)
    return Shape(scale, softcap, getattr(text, "unpadded_vocab_size", None))


def body_of(model: PreTrainedModel) -> nn.Module:
    """The module that makes hidden states of tokens: the model without its head."""
    head = model.get_output_embeddings()
    for found in (model.get_decoder(), model.base_model, getattr(model, "model", None)):
        if isinstance(found, nn.Module) and found is not model and found is not head:
            return found
    problem = f"{_name(model)} has no part that makes hidden states alone, so it is not trained"
    raise SettingError("model.path", problem, "Name a decoder with a head of its own, such as Llama or Qwen")


def linear_of(model: PreTrainedModel) -> nn.Module:
    """The module that makes logits of hidden states."""
    head = model.get_output_embeddings()
    if head is None:
        problem = f"{_name(model)} has no output embeddings, so it is not trained"
        raise SettingError("model.path", problem, "Name a model that predicts the next token")
    return head


def compute_in_float32(head: nn.Module, model: PreTrainedModel) -> None:
    """Makes a linear head return float32 logits: products of bfloat16 numbers, summed and kept without rounding."""
    if not isinstance(head, nn.Linear):
        problem = f"float32 needs a linear head, and that of {_name(model)} is a {type(head).__name__}"
        raise SettingError("learner.head", problem, "Set it to model")

    # The module is still called as one: so ZeRO 3 gathers its weight before the forward and the backward pass.
    # The model's own forward pass calls it with rows, too.
    def forward(input: Tensor) -> Tensor:  # named as in the forward pass that it takes the place of
        logits_NV = Float32Linear.apply(input.flatten(0, -2), head.weight, head.bias)
        return logits_NV.unflatten(0, input.shape[:-1])

    head.forward = forward


def round_first(head: nn.Module) -> None:
    """Makes a head take hidden states of any type: recurrent families keep theirs in float32 and round them here."""
    forward = head.forward
    head.forward = lambda hidden: forward(hidden.to(next(head.parameters()).dtype))


def _name(model: PreTrainedModel) -> str:
    return f"a model of type {model.config.model_type}"


class Float32Linear(torch.autograd.Function):
    """float32 [N, V] of hidden [N, D], weight [V, D] and bias [V] or None. Of the weight only PIECE elements are ever
    copied to float32; gradients come back in the types of what they belong to."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V)
        logits_NV = hidden_ND.new_empty((len(hidden_ND), len(weight_VD)), dtype=torch.float32)
        wide_ND = hidden_ND.float()
        for piece in _pieces(weight_VD):
            torch.mm(wide_ND, weight_VD[piece].float().T, out=logits_NV[:, piece])
        return logits_NV if bias_V is None else logits_NV.add_(bias_V.float())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_NV: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        hidden_ND, weight_VD, bias_V = ctx.saved_tensors
        wide_ND = hidden_ND.float()
        to_hidden_ND = torch.zeros_like(wide_ND)
        to_weight_VD = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        for piece in _pieces(weight_VD):
            to_hidden_ND.addmm_(gradient_NV[:, piece], weight_VD[piece].float())
            if to_weight_VD is not None:
                to_weight_VD[piece] = gradient_NV[:, piece].T @ wide_ND
        to_bias_V = gradient_NV.sum(0).to(bias_V.dtype) if bias_V is not None else None
        return to_hidden_ND.to(hidden_ND.dtype), to_weight_VD, to_bias_V


def _pieces(weight_VD: Tensor) -> list[slice]:
    rows = max(1, PIECE // weight_VD.shape[1])
    return [slice(start, start + rows) for start in range(0, len(weight_VD), rows)]


def logits_of(linear_nV: Tensor, shape: Shape) -> Tensor:
    """float32."""
    logits_nV = linear_nV.float()
    if shape.scale != 1.0:
        logits_nV = logits_nV * shape.scale
    if shape.softcap is not None:
        logits_nV = torch.tanh(logits_nV / shape.softcap) * shape.softcap  # not in place: tanh keeps it for its slope
    return logits_nV


def slices(logits_NV: Tensor, *others: Tensor):
    """Views of a few rows of each at a time."""
    rows = max(1, SLICE // logits_NV.shape[-1])
    return zip(*(tensor.split(rows) for tensor in (logits_NV, *others)), strict=True)
