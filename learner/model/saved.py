"""What a model folder holds of a live model: which buffers, and under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the weights (a router's bias), not those that a model computes (rotary angles)."""
    kept = model.state_dict().keys()
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name in kept}


def as_saved(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as transformers writes them and engines read them, each in memory of its own.

    transformers keeps a layer's experts in one tensor and saves each under a name of its own; `state` has the names
    of the live model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    if not getattr(model, "_weight_conversions", None):
        return state
    saved = revert_weight_conversion(model, state)
    return {name: _whole(tensor) for name, tensor in saved.items()}


def _whole(tensor: Tensor) -> Tensor:
    """Not a view of a larger tensor, nor of one that lies otherwise: safetensors refuses both."""
    apart = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if apart else tensor.clone(memory_format=torch.contiguous_format)
