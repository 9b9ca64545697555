"""The moving average of the trained weights that teaches them, where `learner.objective.teacher` is ema."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from learner.model.policy import Policy
from learner.ranks.commands import together
from protocols.errors import RedraftError

FILE = "average.pt"


class Average:
    """A whole copy of the policy on each rank, which all keep alike. Sums are float32, whatever the model's type is:
    bfloat16 would round small changes away."""

    def __init__(self, policy: Policy, rate: float):
        """`policy` is a copy of the start model; each step it moves by `rate` of the way to the trained one."""
        self.policy, self._rate = policy, rate
        self._sums = {name: parameter.detach().float() for name, parameter in policy.named_parameters()}

    @torch.no_grad()
    def follow(self, trained: Policy) -> None:
        """Once a step of the run, after it."""
        now = dict(trained.named_parameters())
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(self._sums[name].lerp_(now[name].detach().float(), self._rate))

    def save(self, folder: Path) -> None:
        """Rank 0 writes it beside the ranks' parts; see `together`."""
        together(lambda: None if dist.get_rank() else torch.save(self._sums, folder / FILE))

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Goes on from what `save` has written. Raises RedraftError where it is not there, or of another model."""
        try:
            found: dict[str, Tensor] = torch.load(folder / FILE, mmap=True, weights_only=True)
        except OSError as error:
            raise RedraftError(
                f"{folder / FILE}, the teacher of learner.objective.teacher: ema, cannot be read ({error}). Remove "
                f"{folder.parent}, to resume from the checkpoint before it"
            ) from error
        if {name: tensor.shape for name, tensor in found.items()} != {n: t.shape for n, t in self._sums.items()}:
            raise RedraftError(f"{folder / FILE} is of another model. Remove {folder.parent}")
        for name, parameter in self.policy.named_parameters():
            self._sums[name].copy_(found[name])
            parameter.copy_(self._sums[name])
