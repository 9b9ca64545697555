"""Muon, with its iteration in float32: that of torch is in bfloat16, which processors without
instructions for it emulate. On one with AVX2 alone, torch's took half of pretraining a model made here.
"""

from __future__ import annotations

from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration. Source: K. Jordan et al., "Muon", 2024."""
ITERATIONS = 5
MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2
"""What an update's root mean square is brought to, so that rates for AdamW serve. Source: arXiv:2502.16982, 2.2."""


class Muon(torch.optim.Optimizer):
    """For matrices [out, in]: each step is Nesterov's momentum made orthogonal, times `lr`."""

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float):
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        """Raises ValueError for a closure: it is never asked again."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            moved: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moved[tuple(parameter.shape)].append(parameter)
            for parameters in moved.values():
                self._move(parameters, group["lr"])

    def _move(self, parameters: list[torch.Tensor], lr: float) -> None:
        """Those of one shape, in one go."""
        steps = []
        for parameter in parameters:
            mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
            grad = parameter.grad
            assert grad is not None
            mean.lerp_(grad, 1 - MOMENTUM)
            steps.append(grad.lerp(mean, MOMENTUM))
        moves = orthogonal(torch.stack(steps)) * (-lr * RMS_OF_ADAMW * max(parameters[0].shape) ** 0.5)
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.add_(move)


def orthogonal(steps_NOI: torch.Tensor) -> torch.Tensor:
    """float32 [N, O, I]: each matrix with its singular values brought near 1: but for the very small ones between
    .65 and 1.2."""
    tall = steps_NOI.shape[1] > steps_NOI.shape[2]
    found = (steps_NOI.mT if tall else steps_NOI).float()
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the largest is 1 at most
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.mT if tall else found
