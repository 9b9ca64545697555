"""What an objective is: how advantages weigh tokens, and the loss of a token. A user's own one is a subclass too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from learner.measure import Measure
from protocols.named import Named

S = TypeVar("S", bound=Named)
LOG_RATIO_BOUND = 20.0  # exp(20) is far beyond every cap, and finite


@dataclass(frozen=True, slots=True)
class Tokens:
    """The N >= 1 trained tokens of a micro-batch, sequence after sequence and each in the order of its text; every
    sequence that has a token here is whole.

    `mu` is the policy that sampled, `theta` the current one, `prox` the trainer's at the start of the batch: where a
    batch is one optimizer step, theta without its gradient.
    """

    logprobs: Tensor  # float32[N] under theta, with a gradient
    sampler: Tensor  # float32[N] under mu, where `sampled`
    sampled: Tensor  # bool[N], false where the token was authored
    advantages: Tensor  # float32[N]
    sequences: Tensor  # int64[N], the number of the token's sequence in the micro-batch
    reference: Tensor | None = None  # float32[N] under the start model, where the objective asks for it
    prox: Tensor | None = None  # float32[N] under prox, where the objective asks for it
    divergence: Tensor | None = None  # float32[N] from the teacher, with a gradient, where the objective has one
    navigated: Tensor | None = None  # bool[N], sampled with experience in the question
    kept: Tensor | None = None  # bool[N], by the objective's mask of the whole batch, where it has one

    def where(self, chosen_N: Tensor) -> Tokens:
        """Those of them that are chosen, bool[N]."""

        def chosen(part: Any) -> Any:
            return None if part is None else part[chosen_N]

        return Tokens(**{name: chosen(getattr(self, name)) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who has read the continuation of a turn: a moving average of the trained policy, `rate` of the way nearer after
    each step, or without one that policy itself. `measure` says how the policy is compared with it."""

    measure: Measure
    rate: float | None = None


class Objective(ABC, Generic[S]):
    """A loss. It is made with its settings: an OwnSettings, where it is named as `FILE.py:Name`.

    The loss of an optimizer step is the sum over trained tokens of share x weight x (loss + kl x divergence - entropy x
    entropy of the policy there), and over anchored tokens of share x anchor x divergence. The share comes from
    `learner.average` and the role, the weight from `weigh`; the divergence is that from the start model (k3), and
    anchored are the tokens that the model sampled in turns that are not trained, in this run or as the failed answers
    of `data.failures`.
    """

    reference: Literal["start"] | None = None
    """The model besides the trained one whose log-probs it needs."""
    teacher: Teacher | None = None
    """Another reader of each trained turn. With one only the divergence from it has a gradient, not the log-prob."""
    proximal: bool = False
    """Whether it needs log-probs of the trainer's policy at the start of the batch."""
    masks_batch: bool = False
    """Whether it has a mask that depends on all tokens of the batch: `kept`. It needs those log-probs, too."""
    kl: float = 0.0
    entropy: float = 0.0
    anchor: float = 0.0
    authored: bool = True
    """Whether it also trains tokens that were not sampled, which have no ratio."""
    normalise: bool = False
    """Scale a batch's weights to a mean of 1."""

    def __init__(self, settings: S):
        self.settings = settings

    @abstractmethod
    def weigh(self, advantages: np.ndarray) -> np.ndarray:
        """float64[T], finite and not negative, of the float64[T] advantages of one sequence.

        A token of weight 0 counts in the mean, and is forwarded only where other tokens of its sequence are.
        """

    def kept(self, log_weights_T: Tensor) -> Tensor:
        """bool[T]: which of a batch's trained tokens that were sampled it keeps, by float32[T] log prox/mu of all of
        them, in any order."""
        return torch.ones_like(log_weights_T, dtype=torch.bool)

    @abstractmethod
    def loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The loss of each token, float32[N], and whether its gradient was cut to 0, bool[N]."""


def ratio(log_ratio_N: Tensor) -> Tensor:
    """exp, finite whatever the policies are."""
    return log_ratio_N.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def uncut(tokens: Tokens) -> Tensor:
    """bool[N]: no token's gradient was cut."""
    return torch.zeros_like(tokens.sampled)


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of the divergence from the reference, of sampled tokens: never negative, 0 when equal."""
    difference_N = (reference_N - logprobs_N).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return difference_N.exp() - difference_N - 1


ESTIMATES = {
    "k1": lambda logprobs_N, reference_N: logprobs_N - reference_N,
    "k2": lambda logprobs_N, reference_N: (logprobs_N - reference_N).square() / 2,
    "k3": k3,
}
"""Schulman's estimates of the divergence from the reference, of sampled tokens."""
