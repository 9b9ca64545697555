"""Objectives: what share of the loss each token has, and the loss itself.

`mu` is the policy that sampled, `prox` the trainer's policy at the start of the batch, `theta` the current one. One
batch is one optimizer step, so prox is theta without its gradient, and no log-prob is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learner.config import AwrSettings, GrpoSettings, LearnerSettings, SftSettings
from learner.sequences import TokenSequence

LOG_RATIO_BOUND = 20.0  # exp(20) is far beyond every cap, and finite

# What a micro-batch adds to the step's report: sums over tokens, except the last, a maximum.
STATS = ("loss", "tokens", "sampled", "mismatch", "ratio", "ratio_squared", "masked", "entropy", "kl", "mismatch_max")


def coefficients(sequences: Sequence[TokenSequence], turns: int, settings: LearnerSettings) -> list[np.ndarray]:
    """Each token's share of the batch's loss: float32[T] a sequence, taken over the whole batch before it is split.

    The shares of trained tokens add up to 1 (`average: token`, or `turn`: first over the tokens of a turn, then over
    turns), times the objective's weight of the turn. Tokens without a gradient have 0 and need no forward pass.
    """
    shares = _shares(sequences, turns, settings.average)
    objective = settings.objective
    if isinstance(objective, GrpoSettings):
        still = [objective.kl > 0 or sequence.advantages != 0 for sequence in sequences]
        return [(share * moving).astype(np.float32) for share, moving in zip(shares, still, strict=True)]
    weights = [_imitation_weights(sequence.advantages.astype(np.float64), objective) for sequence in sequences]
    weighted = [share * weight for share, weight in zip(shares, weights, strict=True)]
    if isinstance(objective, SftSettings) or objective.normalise:
        total = sum(float(values.sum()) for values in weighted) or 1.0
        weighted = [values / total for values in weighted]
    return [values.astype(np.float32) for values in weighted]


def _shares(sequences: Sequence[TokenSequence], turns: int, average: str) -> list[np.ndarray]:
    weights = [sequence.weights.astype(np.float64) for sequence in sequences]
    if average == "turn":
        tokens = np.zeros(turns)
        for sequence in sequences:
            np.add.at(tokens, sequence.turns[sequence.weights > 0], 1)
        weights = [
            np.divide(values, tokens[sequence.turns], out=np.zeros_like(values), where=values > 0)
            for sequence, values in zip(sequences, weights, strict=True)
        ]
    total = sum(float(values.sum()) for values in weights) or 1.0
    return [values / total for values in weights]


def _imitation_weights(advantages: np.ndarray, objective: AwrSettings | SftSettings) -> np.ndarray:
    if isinstance(objective, SftSettings):
        return np.maximum(advantages, 0.0)
    return np.exp(np.minimum(advantages / objective.temperature, np.log(objective.max_weight)))


def loss_of(
    objective: AwrSettings | GrpoSettings | SftSettings,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    coefficients_N: Tensor,
    advantages_N: Tensor,
    sampler_N: Tensor,
    sampled_N: Tensor,
    reference_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The micro-batch's part of the batch's loss (a scalar), and its float64[len(STATS)] for the report.

    `sampler` are log-probs under mu and count only where `sampled`; `reference` those of the start model.
    """
    zero_N = torch.zeros_like(logprobs_N)
    log_ratio_N = torch.where(sampled_N, logprobs_N.detach() - sampler_N, zero_N)
    masked_N, kl_N = torch.zeros_like(sampled_N), zero_N
    if isinstance(objective, GrpoSettings):
        loss_N, masked_N = policy_gradient(objective, logprobs_N, sampler_N, advantages_N)
        if reference_N is not None:
            kl_N = k3(logprobs_N, reference_N)
            loss_N = loss_N + objective.kl * kl_N
    else:
        loss_N = -logprobs_N
    loss = (coefficients_N * loss_N).sum()
    trained_N = coefficients_N > 0
    counted_N = (sampled_N & trained_N).double()
    ratio_N = _ratio(log_ratio_N).double() * counted_N
    mismatch_N = log_ratio_N.abs().double() * counted_N
    stats = [
        loss.detach().double(),
        trained_N.sum(),
        counted_N.sum(),
        mismatch_N.sum(),
        ratio_N.sum(),
        (ratio_N * ratio_N).sum(),
        (masked_N & trained_N).sum(),
        (entropy_N * trained_N).sum(),
        (kl_N.detach() * trained_N).sum(),
        mismatch_N.max(),
    ]
    return loss, torch.stack([value.double() for value in stats])


def policy_gradient(
    objective: GrpoSettings, logprobs_N: Tensor, sampler_N: Tensor, advantages_N: Tensor
) -> tuple[Tensor, Tensor]:
    """GRPO's loss of each token, and whether its gradient was cut to 0.

    none: -min(r A, clip(r) A) with r = theta/mu. tis: the same with r = theta/prox, times min(prox/mu, cap).
    decoupled: times prox/mu, or 0 where that exceeds `max_weight` (AReaL, arXiv 2505.24298).
    """
    prox_N = logprobs_N.detach()
    ratio_N = _ratio(logprobs_N - (sampler_N if objective.correction == "none" else prox_N))
    clipped_N = ratio_N.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    plain_N, bounded_N = ratio_N * advantages_N, clipped_N * advantages_N
    loss_N = -torch.minimum(plain_N, bounded_N)
    if objective.correction == "none":
        return loss_N, (bounded_N < plain_N).detach()
    weight_N = _ratio(prox_N - sampler_N)
    if objective.correction == "tis":
        return loss_N * weight_N.clamp(max=objective.tis_cap), torch.zeros_like(weight_N, dtype=torch.bool)
    masked_N = weight_N > objective.max_weight
    return loss_N * weight_N.masked_fill(masked_N, 0.0), masked_N


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of the divergence from the reference, of sampled tokens: never negative, 0 when equal."""
    difference_N = (reference_N - logprobs_N).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return difference_N.exp() - difference_N - 1


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def report(stats: np.ndarray) -> dict[str, float]:
    """The step's figures from the summed STATS of all micro-batches and ranks."""
    named = dict(zip(STATS, stats.tolist(), strict=True))
    tokens, sampled = max(named["tokens"], 1), max(named["sampled"], 1)
    squared = named["ratio_squared"] * sampled
    return {
        "loss": named["loss"],
        "trained_tokens": int(named["tokens"]),
        "mismatch_mean": named["mismatch"] / sampled,
        "mismatch_max": named["mismatch_max"],
        "effective_samples": named["ratio"] ** 2 / squared if squared else 1.0,
        "masked_share": named["masked"] / tokens,
        "entropy": named["entropy"] / tokens,
        "kl": named["kl"] / tokens,
    }
