"""Settings of a low-rank adapter that is trained in place of the model (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, field_validator

from protocols.settings import Settings


class LoraSettings(Settings):
    """W + alpha / rank * B A for each adapted matrix W: A and B are trained, W stays."""

    rank: PositiveInt = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat | None = None
    """Weight of the adapter, divided by `rank`. Left out: twice the rank."""
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    """auto: all linear layers but the head. Else the last parts of their names, such as [q_proj, v_proj]."""

    @field_validator("targets", mode="before")
    @classmethod
    def _auto_or_names(cls, targets):
        names = isinstance(targets, list | tuple) and targets and all(isinstance(name, str) for name in targets)
        if targets != "auto" and not names:
            raise ValueError(f"{targets!r} is neither auto nor a list of names; write, say, [q_proj, v_proj]")
        return targets

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank
