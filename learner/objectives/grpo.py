"""grpo: the clipped policy gradient, its variants, and corrections for turns that older weights sampled.

| variant                      | set                                                         | learner.average |
|------------------------------|-------------------------------------------------------------|-----------------|
| GRPO (arXiv 2402.03300)      | correction none                                             | sequence        |
| Dr. GRPO (arXiv 2503.20783)  | correction none, credit group with std false                | constant        |
| DAPO (arXiv 2503.14476)      | correction none, clip_high 0.28, replay.drop_flat, overlong | token           |
| GSPO (arXiv 2507.18071)      | correction none, ratio sequence                             | sequence        |
| CISPO (arXiv 2506.13585)     | correction none, loss cispo                                 | token           |
| DPPO (arXiv 2602.04879)      | correction none, loss dppo                                  | token           |
| M2PO (arXiv 2510.01161)      | correction none, loss m2po                                  | token           |
| TIS                          | correction tis                                              | token           |
| decoupled (arXiv 2505.24298) | correction decoupled, learner.updates with several steps    | token           |

With `imitate` tokens that the policy did not sample on these ids are learned as objective sft learns them: they have no
ratio and no log-prob to correct by.

With one optimizer step a batch the ratio of TIS and decoupled is 1: both are then the policy gradient weighted by
prox/mu, and nothing is clipped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learner.objective_config import GrpoSettings
from learner.objectives.base import ESTIMATES, Objective, Tokens, ratio, uncut
from learner.objectives.spans import mean_of, of_sequences, to_go, with_mean


class Grpo(Objective[GrpoSettings]):
    """-min(r A, clip(r) A) of each token, with the ratio r and the factors that the settings choose."""

    def __init__(self, settings: GrpoSettings):
        super().__init__(settings)
        self.kl, self.anchor, self.entropy = settings.kl, settings.anchor, settings.entropy
        self.authored = settings.imitate
        self.reference = "start" if settings.held_to_start() else None
        self.masks_batch = settings.loss == "m2po"
        self.proximal = (
            settings.correction != "none"
            or settings.kl_reward > 0
            or settings.sequence_mask is not None
            or self.masks_batch
        )

    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        settings, moving = self.settings, advantages != 0
        whole = settings.ratio == "sequence" or settings.sequence_mask is not None
        if settings.kl > 0 or settings.kl_reward > 0 or settings.entropy > 0 or (whole and moving.any()):
            return np.ones(len(advantages))  # all tokens of a sequence make its ratio
        return moving.astype(np.float64)

    def kept(self, log_weights_T: Tensor) -> Tensor:
        """m2po: all but those furthest from equal, as many as it takes until the mean of squares is small enough."""
        return with_mean(log_weights_T.square(), self.settings.second_moment)

    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """That of sampled tokens, and -log theta times the advantage, if positive, of those that were not."""
        if not self.settings.imitate or tokens.sampled.all():
            return self._of_sampled(tokens)
        loss_N, cut_N = -tokens.logprobs * tokens.advantages.clamp(min=0.0), uncut(tokens)
        if tokens.sampled.any():
            own_N, cut_N[tokens.sampled] = self._of_sampled(tokens.where(tokens.sampled))
            loss_N = loss_N.masked_scatter(tokens.sampled, own_N)
        return loss_N, cut_N

    def _of_sampled(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """none: r = theta/mu. tis: r = theta/prox, and the loss times min(prox/mu, cap). decoupled: r = theta/prox, and
        the loss times prox/mu, or 0 where that exceeds `max_weight`. With `sequence_mask` also 0 in sequences whose
        mean of log prox/mu is out of bounds."""
        settings = self.settings
        if not self.proximal:
            return self._clipped(tokens, tokens.advantages, tokens.sampler)
        assert tokens.prox is not None, "it asks for them"
        older_N = tokens.sampler if settings.correction == "none" else tokens.prox
        loss_N, cut_N = self._clipped(tokens, self._advantages(tokens, tokens.prox), older_N)
        log_weight_N = tokens.prox - tokens.sampler
        weight_N, masked_N = ratio(log_weight_N), uncut(tokens)
        if settings.correction == "tis":
            loss_N = loss_N * weight_N.clamp(max=settings.tis_cap)
        elif settings.correction == "decoupled":
            masked_N = weight_N > settings.max_weight
            loss_N = loss_N * weight_N.masked_fill(masked_N, 0.0)
        if settings.sequence_mask is not None:
            low, high = settings.sequence_mask
            mean_N = ratio(mean_of(log_weight_N, tokens.sequences))
            masked_N = masked_N | (mean_N < low) | (mean_N > high)
            loss_N = loss_N.masked_fill(masked_N, 0.0)
        return loss_N, cut_N | masked_N

    def _advantages(self, tokens: Tokens, prox_N: Tensor) -> Tensor:
        """Those of the credit, less `kl_reward` times the estimates from each token to the end of its sequence."""
        if not self.settings.kl_reward:
            return tokens.advantages
        assert tokens.reference is not None, "it asks for the start model's log-probs"
        cost_N = ESTIMATES[self.settings.kl_estimator](prox_N, tokens.reference)
        return tokens.advantages - self.settings.kl_reward * to_go(cost_N, tokens.sequences)

    def _clipped(self, tokens: Tokens, advantages_N: Tensor, older_N: Tensor) -> tuple[Tensor, Tensor]:
        """The loss with the ratio to the older log-probs, and where the clip ended its gradient.

        cispo: -sg(clip(r)) A log theta, which no clip ends. With a dual clip c also -c A at most, where A < 0.
        """
        if self.settings.loss == "dppo":
            return self._within(tokens, advantages_N, older_N)
        if self.settings.loss == "m2po":
            assert tokens.kept is not None, "it asks for them"
            plain_N, cut_N = ratio(tokens.logprobs - older_N) * advantages_N, ~tokens.kept
            return -plain_N.masked_fill(cut_N, 0.0), cut_N
        settings, (low, high) = self.settings, self.settings.clips
        whole = settings.ratio == "sequence"
        ratio_N = of_sequences(tokens, older_N) if whole else ratio(tokens.logprobs - older_N)
        clipped_N = ratio_N.clamp(None if low is None else 1 - low, 1 + high)
        if settings.clip_high_navigated is not None and tokens.navigated is not None:
            raised_N = ratio_N.clamp(None if low is None else 1 - low, 1 + settings.clip_high_navigated)
            clipped_N = torch.where(tokens.navigated, raised_N, clipped_N)
        if settings.loss == "cispo":
            weight_N = (clipped_N * advantages_N).detach()
            return -weight_N * tokens.logprobs, uncut(tokens)
        plain_N, bounded_N = ratio_N * advantages_N, clipped_N * advantages_N
        surrogate_N, cut_N = torch.minimum(plain_N, bounded_N), (bounded_N < plain_N).detach()
        if settings.dual_clip is not None:
            floor_N = torch.where(advantages_N < 0, settings.dual_clip * advantages_N, -torch.inf)
            cut_N = cut_N | (surrogate_N < floor_N).detach()
            surrogate_N = torch.maximum(surrogate_N, floor_N)
        return -surrogate_N, cut_N

    def _within(self, tokens: Tokens, advantages_N: Tensor, older_N: Tensor) -> tuple[Tensor, Tensor]:
        """dppo: -r A, or 0 where |theta - older| > max_shift and r A would move it further away."""
        ratio_N = ratio(tokens.logprobs - older_N)
        shift_N = (tokens.logprobs.detach().exp() - older_N.exp()).abs()
        outward_N = advantages_N * (tokens.logprobs.detach() - older_N) > 0
        cut_N = outward_N & (shift_N > self.settings.max_shift)
        return -(ratio_N * advantages_N).masked_fill(cut_N, 0.0), cut_N
