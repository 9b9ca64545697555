"""grpo: the clipped policy gradient, its variants, and corrections for turns that older weights sampled.

| variant                      | set                                                        | learner.average |
|------------------------------|------------------------------------------------------------|-----------------|
| GRPO (arXiv 2402.03300)      | correction none                                            | sequence        |
| Dr. GRPO (arXiv 2503.20783)  | correction none, credit group with std false               | constant        |
| DAPO (arXiv 2503.14476)      | correction none, clip_high 0.28, replay.drop_flat, overlong | token           |
| GSPO (arXiv 2507.18071)      | correction none, ratio sequence                            | sequence        |
| CISPO (arXiv 2506.13585)     | correction none, loss cispo                                | token           |
| TIS                          | correction tis                                             | token           |
| decoupled (arXiv 2505.24298) | correction decoupled                                       | token           |
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learner.objective_config import GrpoSettings
from learner.objectives.base import Objective, Tokens, ratio, uncut


class Grpo(Objective[GrpoSettings]):
    """-min(r A, clip(r) A) of each token, with the ratio r and the factors that the settings choose."""

    authored = False

    def __init__(self, settings: GrpoSettings):
        super().__init__(settings)
        self.kl, self.anchor = settings.kl, settings.anchor
        self.reference = "start" if settings.kl > 0 or settings.anchor > 0 else None

    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        moving = advantages != 0
        if self.kl > 0 or (self.settings.ratio == "sequence" and moving.any()):
            return np.ones(len(advantages))  # all tokens of a sequence make its ratio
        return moving.astype(np.float64)

    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """none: r = theta/mu. tis: r = theta/prox, and the loss times min(prox/mu, cap). decoupled: r = theta/prox, and
        the loss times prox/mu, or 0 where that exceeds `max_weight`."""
        settings, prox_N = self.settings, tokens.logprobs.detach()
        loss_N, cut_N = self._clipped(tokens, tokens.sampler if settings.correction == "none" else prox_N)
        if settings.correction == "none":
            return loss_N, cut_N
        weight_N = ratio(prox_N - tokens.sampler)
        if settings.correction == "tis":
            return loss_N * weight_N.clamp(max=settings.tis_cap), cut_N
        masked_N = weight_N > settings.max_weight
        return loss_N * weight_N.masked_fill(masked_N, 0.0), masked_N

    def _clipped(self, tokens: Tokens, older_N: Tensor) -> tuple[Tensor, Tensor]:
        """The loss with the ratio to the older log-probs, and where the clip ended its gradient.

        cispo: -sg(clip(r)) A log theta, which no clip ends.
        """
        settings = self.settings
        whole = settings.ratio == "sequence"
        ratio_N = _of_sequences(tokens, older_N) if whole else ratio(tokens.logprobs - older_N)
        clipped_N = ratio_N.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        if settings.loss == "cispo":
            weight_N = (clipped_N * tokens.advantages).detach()
            return -weight_N * tokens.logprobs, uncut(tokens)
        plain_N, bounded_N = ratio_N * tokens.advantages, clipped_N * tokens.advantages
        return -torch.minimum(plain_N, bounded_N), (bounded_N < plain_N).detach()


def _of_sequences(tokens: Tokens, older_N: Tensor) -> Tensor:
    """GSPO's ratio s = exp(mean of log r over the trained tokens of a sequence), with the gradient of GSPO-token:
    that of s theta / sg(theta), so that turns of one sequence may differ in advantage. Where they do not, it is GSPO.
    """
    current_N = tokens.logprobs.detach()
    sequences = int(tokens.sequences.max()) + 1
    sums = torch.zeros(sequences, device=current_N.device).index_add(0, tokens.sequences, current_N - older_N)
    counts = torch.zeros_like(sums).index_add(0, tokens.sequences, torch.ones_like(current_N))
    mean_N = (sums / counts)[tokens.sequences]
    return ratio(mean_N + (tokens.logprobs - current_N))
