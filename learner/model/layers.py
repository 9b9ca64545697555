"""Layers: the repeated parts of a transformers model, by which it is checkpointed, gathered and compiled."""

from __future__ import annotations

from torch import nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, in their order; empty for a family of which transformers marks none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
