"""What an objective takes over several tokens at once: those of a sequence, or of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.base import Tokens, ratio


def of_sequences(tokens: Tokens, older_N: Tensor) -> Tensor:
    """GSPO's ratio s = exp(mean of log r over the trained tokens of a sequence), with the gradient of GSPO-token:
    that of s theta / sg(theta), so that turns of one sequence may differ in advantage. Where they do not, it is GSPO.
    """
    current_N = tokens.logprobs.detach()
    return ratio(mean_of(current_N - older_N, tokens.sequences) + (tokens.logprobs - current_N))


def with_mean(values_T: Tensor, largest: float) -> Tensor:
    """bool[T]: the smallest values, as many as have a mean of at most `largest`; of equal ones all or none."""
    ordered_T = values_T.double().sort().values
    means_T = ordered_T.cumsum(0) / torch.arange(1, len(ordered_T) + 1, device=values_T.device)
    count = int((means_T <= largest).sum())  # means of what is sorted never fall
    if count == len(ordered_T):
        return torch.ones_like(values_T, dtype=torch.bool)
    return values_T.double() < ordered_T[count]


def mean_of(values_N: Tensor, sequences_N: Tensor) -> Tensor:
    """[N]: at each token the mean over its sequence."""
    sums = values_N.new_zeros(int(sequences_N.max()) + 1).index_add(0, sequences_N, values_N)
    counts = torch.zeros_like(sums).index_add(0, sequences_N, torch.ones_like(values_N))
    return (sums / counts)[sequences_N]


def to_go(values_N: Tensor, sequences_N: Tensor) -> Tensor:
    """[N]: at each token the sum over it and all that follow in its sequence."""
    sums = torch.zeros(int(sequences_N.max()) + 1, dtype=torch.float64, device=values_N.device)
    wide_N = values_N.double()
    ends_N = sums.index_add(0, sequences_N, wide_N).cumsum(0)[sequences_N]
    return (ends_N - wide_N.cumsum(0) + wide_N).to(values_N.dtype)
