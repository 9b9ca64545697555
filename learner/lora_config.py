"""Settings of a low-rank adapter that is trained in place of the model (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from protocols.settings import Settings


class LoraSettings(Settings):
    """W + alpha / rank * B A for each adapted matrix W: A and B are trained, W stays."""

    rank: PositiveInt = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat | None = None
    """Weight of the adapter, divided by `rank`. Left out: twice the rank."""
    targets: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """auto: all linear layers but the head. Else the last parts of their names, such as [q_proj, v_proj]."""

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank
