"""How a model is compared with its teacher; see learner/model/distilled.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Divergence = Literal["reverse", "forward", "jensen_shannon"]


@dataclass(frozen=True, slots=True)
class Measure:
    """`top`: how many tokens stand for themselves. reverse: KL(model || teacher); forward: KL(teacher || model);
    jensen_shannon: the mean of both to the middle of the two."""

    top: int
    divergence: Divergence = "reverse"
