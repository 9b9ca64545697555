"""awr: cross-entropy weighted by exp(advantage / temperature) (RISE, arXiv 2407.18219; AWR, arXiv 1910.00177)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from learner.objective_config import AwrSettings
from learner.objectives.base import Objective, Tokens, uncut


class Awr(Objective[AwrSettings]):
    """Needs no ratio, so that authored turns are learned from too. RISE's weights of rewards 1, 0 and -1 at
    temperature 0.4 are 12.18, 1 and 0.082."""

    def __init__(self, settings: AwrSettings):
        super().__init__(settings)
        self.normalise = settings.normalises

    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(advantages / self.settings.temperature, np.log(self.settings.max_weight)))

    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return -tokens.logprobs, uncut(tokens)
