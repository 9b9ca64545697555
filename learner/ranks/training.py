"""One training: the start model under DeepSpeed with a fresh optimizer, whole from its first moment to its last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from learner.config import LearnerSettings
from learner.model.layers import layers_of
from learner.model.policy import Policy
from learner.ranks.stages import config_of, stage_of

if TYPE_CHECKING:
    from deepspeed.runtime.engine import DeepSpeedEngine
    from transformers import PreTrainedModel


class Clip:
    """Clips the gradient before the optimizer's step, and tells its norm: DeepSpeed without sharding and in float32
    does neither, nor does it stop a gradient that is not finite."""

    def __init__(self, policy: Policy, largest: float):
        self.norm = math.nan
        self._policy, self._largest = policy, largest

    def __call__(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """On gradients averaged over ranks."""
        parameters = list(self._policy.parameters())
        self.norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._largest))
        if not math.isfinite(self.norm):
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient stays as it is


@dataclass(frozen=True, slots=True)
class Training:
    """`engine` runs `policy`; without `clip` it clips by itself; `trained` is how many parameters are trained,
    `stage` what DeepSpeed shards."""

    engine: DeepSpeedEngine
    policy: Policy
    optimizer: torch.optim.Optimizer
    clip: Clip | None
    trained: int
    stage: int

    @property
    def norm(self) -> float:
        """That of the last step's gradient, before it was clipped."""
        if self.clip is not None:
            return self.clip.norm
        norm = self.engine.get_global_grad_norm()
        assert norm is not None, "DeepSpeed knows it after each step"
        return float(norm)

    def step(self) -> None:
        """The optimizer's, on the gradients that were summed up."""
        self.engine.step()
        optimizer: Any = self.engine.optimizer
        if getattr(optimizer, "cpu_offload", False) and optimizer.overflow:
            # Stage 2 keeps sums that are not finite where the optimizer is in host memory: no step would follow.
            for sums in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                sums.update(dict.fromkeys(sums))

    def free(self) -> None:
        """Gives back the memory of weights and optimizer; nothing of it can be used any more.

        DeepSpeed's stage 3 keeps modules and their parameters in caches of the process for ever: they are left empty.
        """
        self.engine.destroy()
        for parameter in list(self.policy.parameters()):
            parameter.data = parameter.data.new_empty(0)
            vars(parameter).clear()
        for module in list(self.policy.modules()):
            vars(module).clear()


def begin(
    model: PreTrainedModel, settings: LearnerSettings, dtype: torch.dtype, temperature: float, packed: bool
) -> Training:
    """Trains those weights of the model that require a gradient. `temperature` is that of sampling; `packed` is
    whether sequences may share a row."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.optimizer.lr,
        betas=settings.optimizer.betas,
        weight_decay=settings.optimizer.weight_decay,
        fused=True,
    )
    policy = Policy(model.train(), temperature, settings.head, packed)
    float32 = dtype is torch.float32
    offload = settings.offload == "optimizer"
    stage = stage_of(settings.zero, settings.ranks, float32, offload)
    clip = Clip(policy, settings.optimizer.clip) if stage == 0 and float32 else None
    size = sum(parameter.numel() for parameter in trained)
    largest = 0.0 if clip else settings.optimizer.clip
    if stage == 3:
        _gather_by_layers(model)
    pin = torch.cuda.is_available() if offload else None
    engine = _initialize(policy, optimizer, config_of(stage, settings.ranks, float32, largest, size, pin))
    if settings.ranks == 1 and stage < 2:
        engine.enable_backward_allreduce = False  # it would copy all gradients into one piece, and back
    if stage == 0:
        for parameter in trained:
            parameter.grad_dtype = torch.float32
    if clip is not None:
        optimizer.register_step_pre_hook(clip)
    return Training(engine, policy, optimizer, clip, size, stage)


def _gather_by_layers(model: PreTrainedModel) -> None:
    """Has stage 3 gather a decoder layer at once, where it would gather each of the modules within by hooks of its own.

    Not where a layer would be told the end of its backward pass too early, before its first gradients are there: that
    is when its input needs none, as beneath an adapter; nor where layers share weights, which have one end each.
    """
    from deepspeed.utils import set_z3_leaf_module

    layers = layers_of(model)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    if all(parameter.requires_grad for parameter in model.parameters()) and len(set(parameters)) == len(parameters):
        for layer in layers:
            set_z3_leaf_module(layer, True)


def _initialize(policy: Policy, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> DeepSpeedEngine:
    import deepspeed

    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
    return engine
