"""Compiled layers: torch.compile on each decoder layer, once it was seen to compute what the layer itself does.

A layer is compiled for sizes that are not known beforehand, so that batches of other lengths need nothing new. What is
compared are log-probs, and gradients of the first and the last layer, of packed sequences of the run's weights: they
may differ by no more than rounding explains (learner.model.noise).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.model.layers import layers_of
from learner.model.noise import LAST_DIGIT, rounding
from learner.model.policy import Policy
from learner.model.selftest import SLACK, sequences

VARIANTS = 32
"""Of one function: one row or many, with and without gradients, training or not, with and without its adapter, kinds of
attention. Beyond torch's own limit of 8 a layer would run as it was written, in silence."""
Wanted = bool | Literal["auto"]


def wanted(setting: Wanted, device: str, stage: int) -> bool:
    """Whether layers are to be compiled on this device and under this stage of ZeRO."""
    return setting is True or (setting == "auto" and device == "cuda" and stage < 3)


def compile_layers(policy: Policy) -> None:
    """Has each decoder layer compiled at its first pass; layers of one kind share what is compiled."""
    torch._dynamo.config.recompile_limit = VARIANTS
    for layer in layers_of(policy.model):
        layer.compile(dynamic=True)


def uncompile(policy: Policy) -> None:
    """The layers as they were."""
    for layer in layers_of(policy.model):
        layer._compiled_call_impl = None  # torch has no call for it


def compile_tested(policy: Policy, seed: int) -> str:
    """Compiles the layers, runs them, and compares: what is wrong, "" where nothing is. What is wrong stays compiled:
    see `uncompile`."""
    if not layers_of(policy.model):
        return "no layers are known of this model"
    examined = Examined(policy, seed)
    compile_layers(policy)
    return examined.problem()


class Examined:
    """Log-probs and gradients of a policy as it was at first, and how far rounding moves them."""

    def __init__(self, policy: Policy, seed: int):
        self._policy, self._device = policy, next(policy.parameters()).device
        a, b, other_a, _ = sequences(policy.model.config, seed)
        self._rows = [(a, b), (other_a,)]  # two lengths: what is compiled for one alone would be seen
        layers = layers_of(policy.model)
        ends = [*layers[0].parameters(), *layers[-1].parameters()]
        self._watched = [parameter for parameter in dict.fromkeys(ends) if parameter.requires_grad]
        self._before = self._passes()
        with rounding(policy.model):
            self._moved = self._passes()

    def problem(self) -> str:
        """What is wrong with the policy as it is now; "" where nothing is."""
        try:
            now = self._passes()
        except Exception as error:  # a compiler raises whatever it stumbles over
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"layers cannot be compiled ({type(error).__name__}: {said})"
        for name in ("log-probs", "gradients"):
            found = _distance(now[name], self._before[name])
            floor = LAST_DIGIT[self._device.type]
            explained = max(_distance(self._moved[name], self._before[name]), floor)
            if not found <= SLACK * explained:
                return (
                    f"compiled layers give other {name}: {found:.2g} of them, where rounding explains {explained:.2g}"
                )
        return ""

    def _passes(self) -> dict[str, Tensor]:
        """float32[N] of all rows together, each."""
        logprobs, gradients = [], []
        for row in self._rows:
            tokens = torch.cat(row).to(self._device)
            positions = torch.cat([torch.arange(len(part)) for part in row]).to(self._device)
            picks = torch.arange(len(tokens) - 1, device=self._device)
            found = self._policy(tokens[None], positions[None], picks, tokens[1:])[0]
            slopes = torch.autograd.grad(found.sum(), self._watched, allow_unused=True)
            logprobs.append(found.detach())
            gradients += [slope.detach().float().flatten() for slope in slopes if slope is not None]
        return {"log-probs": torch.cat(logprobs), "gradients": torch.cat(gradients)}


def _distance(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm; infinite where something is not a number."""
    if one.shape != other.shape or not one.isfinite().all():
        return float("inf")
    return float((one - other).norm() / other.norm().clamp(min=1e-30))
