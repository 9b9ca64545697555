"""One training: the start model under DeepSpeed with a fresh optimizer, whole from its first moment to its last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from learner.config import LearnerSettings
from learner.model.policy import Policy

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
    """`engine` runs `policy`; without `clip` it clips by itself; `trained` is how many parameters are trained."""

    engine: DeepSpeedEngine
    policy: Policy
    optimizer: torch.optim.Optimizer
    clip: Clip | None
    trained: int

    @property
    def norm(self) -> float:
        """That of the last step's gradient, before it was clipped."""
        if self.clip is not None:
            return self.clip.norm
        norm = self.engine.get_global_grad_norm()
        assert norm is not None, "DeepSpeed knows it after each step"
        return float(norm)

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
    clips_itself = settings.zero == 0 and dtype is torch.float32
    engine = _initialize(policy, optimizer, settings, dtype, 0.0 if clips_itself else settings.optimizer.clip)
    if settings.zero == 0:
        for parameter in trained:
            parameter.grad_dtype = torch.float32
    clip = Clip(policy, settings.optimizer.clip)
    if clips_itself:
        optimizer.register_step_pre_hook(clip)
    size = sum(parameter.numel() for parameter in trained)
    return Training(engine, policy, optimizer, clip if clips_itself else None, size)


def _initialize(
    policy: Policy, optimizer: torch.optim.Optimizer, settings: LearnerSettings, dtype: torch.dtype, clip: float
) -> DeepSpeedEngine:
    import deepspeed

    # Micro-batches add up in float32. Stage 0 refuses the setting: there `begin` has torch itself do it.
    sums = {"grad_accum_dtype": "fp32"} if settings.zero else {}
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,  # required, and without effect: micro-batches are ours
            "managed_gradient_accumulation": False,  # step() ends the batch, however many micro-batches it had
            "gradient_clipping": clip,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, instead of one that is compiled at first use
            "bf16": {"enabled": dtype is torch.bfloat16, "check_grad_overflow": True},
            "data_types": sums,
            "communication_data_type": "fp32",  # so do ranks
            "zero_optimization": {"stage": settings.zero, "overlap_comm": False},
        },
    )
    return engine
