"""distill: the model that has read what was said of a turn teaches the one that has not (SDPO, arXiv 2601.20802)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from learner.measure import Measure
from learner.objective_config import DistillSettings
from learner.objectives.base import Objective, Teacher, Tokens, uncut


class Distill(Objective[DistillSettings]):
    """The divergence from the teacher at each token. What a turn is worth does not weigh it: the credit only says which
    turns are trained."""

    def __init__(self, settings: DistillSettings):
        super().__init__(settings)
        rate = settings.rate if settings.teacher == "ema" else None
        self.teacher = Teacher(Measure(settings.top, settings.divergence), rate)

    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        return np.ones_like(advantages)

    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        assert tokens.divergence is not None, "the objective has a teacher"
        return tokens.divergence, uncut(tokens)
