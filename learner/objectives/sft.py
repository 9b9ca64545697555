"""sft: cross-entropy on what is worth more than nothing."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from learner.objective_config import SftSettings
from learner.objectives.base import Objective, Tokens, uncut


class Sft(Objective[SftSettings]):
    """Each turn weighs what it is worth, where that is positive; the weights of a batch add up to 1."""

    normalise = True

    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        return np.maximum(advantages, 0.0)

    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return -tokens.logprobs, uncut(tokens)
