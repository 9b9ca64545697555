"""Objectives, one file each; base.py says what one is.

An *objective* says what training makes as small as it can. For a batch that is a number, its *loss*, whose gradient
moves the weights: a sum over tokens of share times loss of the token. An objective gives the loss of a token, and how
much its advantage weighs; the share follows from that weight, the token's role and `learner.average`. Where a batch is
several optimizer steps (`learner.updates`), all of this holds for each minibatch as if it were the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from learner.config import LearnerSettings, UpdateSettings
from learner.objectives.base import Objective, Tokens, k3, ratio
from learner.sequences import Shares, TokenSequence
from protocols.errors import SettingError
from protocols.named import Named, load
from protocols.reports import FitReport

NAMES = {
    "grpo": "learner.objectives.grpo:Grpo",
    "awr": "learner.objectives.awr:Awr",
    "sft": "learner.objectives.sft:Sft",
    "distill": "learner.objectives.distill:Distill",
}
SETTING = "learner.objective.name"

# What a micro-batch adds to the step's report: sums over tokens, except the last, a maximum.
STATS = (
    *("loss", "tokens", "sampled", "mismatch", "ratio", "ratio_squared", "masked", "entropy", "compared", "kl"),
    *("anchored", "anchor_kl", "mismatch_max"),
)


def make(settings: Named) -> Objective:
    """The objective of `learner.objective`. Raises SettingError when there is none."""
    kind = load(SETTING, settings.name, NAMES)
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        base = "learner.objectives.base.Objective"
        raise SettingError(SETTING, f"{settings.name} is not a subclass of {base}", "Derive it from that")
    return kind(settings)


def coefficients(sequences: Sequence[TokenSequence], settings: LearnerSettings, objective: Objective) -> list[Shares]:
    """The shares of the tokens of all sequences of a minibatch, taken over the whole of it before it is split.

    Shares of trained tokens add up to 1 (not with `average: constant`), times what the objective weighs it. An anchored
    token has `anchor` times the share of a trained one of role weight 1: anchoring changes nothing about what trained
    tokens weigh, and a batch without a trained token anchors none. Raises SettingError where `weigh` returns anything
    but weights.
    """
    if not sequences:
        return []
    trained_T, anchored_T = _shares(sequences, settings)
    trained_T = trained_T * np.concatenate([_weighed(objective, one) for one in sequences])
    if objective.normalise:
        trained_T = trained_T / (trained_T.sum() or 1.0)
    sampled_T = np.concatenate([one.sampled for one in sequences])  # of others k3 estimates no divergence
    kl_T = objective.kl * trained_T * sampled_T + objective.anchor * anchored_T
    ends = np.cumsum([len(one.tokens) for one in sequences])[:-1]
    parts = (np.split(values.astype(np.float32), ends) for values in (trained_T, kl_T))
    return [Shares(*pair) for pair in zip(*parts, strict=True)]


def _shares(sequences: Sequence[TokenSequence], settings: LearnerSettings) -> tuple[np.ndarray, np.ndarray]:
    """float64 of all sequences end to end: the share of each trained token by its role, and of each anchored one."""
    role_weights, anchored, turns = (
        np.concatenate([getattr(one, name) for one in sequences]) for name in ("role_weights", "anchored", "turns")
    )
    numbers = np.repeat(np.arange(len(sequences)), [len(one.tokens) for one in sequences])
    owners = {"turn": turns, "sequence": numbers}.get(settings.average)
    trained_T, anchored_T = (_mean_over(owners, values.astype(np.float64)) for values in (role_weights, anchored))
    total = trained_T.sum()
    if settings.average == "constant":
        total = settings.row_tokens * len(np.unique(numbers[role_weights > 0]))
    return (trained_T / total, anchored_T / total) if total else (trained_T, 0.0 * anchored_T)


def _mean_over(owners: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    """Each value over how many values above 0 have its owner, which is a turn or a sequence."""
    if owners is None:
        return values
    counts = np.bincount(owners[values > 0], minlength=owners.max() + 1)
    return np.divide(values, counts[owners], out=np.zeros_like(values), where=values > 0)


def _weighed(objective: Objective, sequence: TokenSequence) -> np.ndarray:
    weights = objective.weigh(sequence.advantages.astype(np.float64))
    if np.shape(weights) != sequence.advantages.shape or not np.all(np.isfinite(weights) & (weights >= 0)):
        wanted = "Return one finite number of at least 0 for each token"
        raise SettingError(SETTING, f"weigh of {objective.settings.name} returned {weights!r}", wanted)
    return weights


def loss_of(
    objective: Objective,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    micro: Mapping[str, Tensor],
    reference_N: Tensor | None = None,
    prox_N: Tensor | None = None,
    divergence_N: Tensor | None = None,
    kept_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The micro-batch's part of the loss (a scalar), and its float64[len(STATS)] for the report.

    `micro` holds a MicroBatch's arrays of N tokens by name; `reference` are the start model's log-probs of them, `prox`
    those of the trainer at the start of the batch (None: the same as now), `divergence` is that from the objective's
    teacher, `kept` its mask by the whole batch.
    """
    coefficients_N, sampled_N, zero_N = micro["coefficients"], micro["sampled"], torch.zeros_like(logprobs_N)
    prox_N = logprobs_N.detach() if prox_N is None else prox_N
    trained_N = coefficients_N > 0
    live_N = logprobs_N if divergence_N is None else divergence_N
    loss, cut_N = zero_N @ live_N, torch.zeros_like(trained_N)  # a rank without work needs a graph, too
    if trained_N.any():
        tokens = Tokens(
            logprobs=logprobs_N[trained_N],
            sampler=micro["sampler"][trained_N],
            sampled=micro["sampled"][trained_N],
            advantages=micro["advantages"][trained_N],
            sequences=micro["sequences"][trained_N],
            reference=None if reference_N is None else reference_N[trained_N],
            prox=prox_N[trained_N] if objective.proximal else None,
            navigated=micro["navigated"][trained_N],
            kept=None if kept_N is None else kept_N[trained_N],
            divergence=None if divergence_N is None else divergence_N[trained_N],
        )
        each_N, cut_N[trained_N] = objective.loss(tokens)
        loss = coefficients_N[trained_N] @ each_N
    if objective.entropy:
        loss = loss - objective.entropy * (coefficients_N @ entropy_N)
    kl_N = zero_N if reference_N is None else k3(logprobs_N, reference_N)
    loss = loss + micro["divergences"] @ kl_N
    anchored_N = (micro["divergences"] > 0) & ~trained_N
    counted_N = (sampled_N & trained_N).double()
    log_ratio_N = torch.where(sampled_N, prox_N - micro["sampler"], zero_N)
    ratio_N, mismatch_N = ratio(log_ratio_N).double() * counted_N, log_ratio_N.abs().double() * counted_N
    stats = [
        loss.detach(),
        trained_N.sum(),
        counted_N.sum(),
        mismatch_N.sum(),
        ratio_N.sum(),
        (ratio_N * ratio_N).sum(),
        cut_N.sum(),
        (entropy_N.detach() * trained_N).sum(),
        counted_N.sum() * (reference_N is not None),  # of others k3 estimates no divergence
        (kl_N.detach() * counted_N).sum(),
        anchored_N.sum(),
        (kl_N.detach() * anchored_N).sum(),
        mismatch_N.max(),
    ]
    return loss, torch.stack([value.double() for value in stats])


def per_batch(stats: np.ndarray, updates: UpdateSettings) -> np.ndarray:
    """The STATS of a batch from their sums over its optimizer steps: each token counts once, and the loss is a mean."""
    each = np.full(len(STATS), updates.epochs)
    each[STATS.index("loss")] *= updates.minibatches
    each[STATS.index("mismatch_max")] = 1
    return stats / each


def report(stats: np.ndarray) -> FitReport:
    """The step's figures from the summed STATS of all micro-batches and ranks. A figure over nothing is None: all but
    the count where no token was trained, of trainer and sampler where none was sampled, a divergence without any."""
    named = dict(zip(STATS, stats.tolist(), strict=True))

    def over(figure: str, count: str) -> float | None:
        return named[figure] / named[count] if named[count] else None

    squared = named["ratio_squared"] * named["sampled"]
    return FitReport(
        loss=named["loss"] if named["tokens"] or named["anchored"] else None,
        trained_tokens=round(named["tokens"]),
        mismatch_mean=over("mismatch", "sampled"),
        mismatch_max=named["mismatch_max"] if named["sampled"] else None,
        effective_samples=named["ratio"] ** 2 / squared if squared else None,
        masked_share=over("masked", "tokens"),
        entropy=over("entropy", "tokens"),
        kl=over("kl", "compared"),
        anchor_kl=over("anchor_kl", "anchored"),
    )
