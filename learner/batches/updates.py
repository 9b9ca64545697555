"""Updates: which groups of a batch each of its optimizer steps trains on, weighed and packed for the ranks.

A batch of groups a b c d, in 2 minibatches and 2 epochs, is four optimizer steps:   a c | b d    a b | c d
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from learner.batches.packing import Packed, pack
from learner.config import LearnerSettings, UpdateSettings
from learner.objectives import coefficients
from learner.objectives.base import Objective
from learner.sequences import Linearised, Shares


@dataclass(frozen=True, slots=True)
class Updates:
    """The optimizer steps of a batch, in order. `shares` are those of each of its sequences in the first epoch."""

    packed: Packed
    shares: list[Shares]


def divide(
    lines: Linearised,
    groups: int,
    settings: LearnerSettings,
    objective: Objective,
    *,
    importance: np.ndarray | None = None,
    seed: int = 0,
    step: int = 0,
) -> Updates:
    """Each minibatch is weighed and packed as if it were the batch; every rank has micro-batches of each.

    `importance` float32[groups] scales the loss of each group (None: all by 1); `seed` and `step` are those of the run.
    """
    places = [0, *accumulate(len(one.tokens) for one in lines.sequences)]
    shares: dict[int, Shares] = {}
    packed = []
    for number, chosen in enumerate(deal(groups, settings.updates, seed=seed, step=step)):
        indices = [index for index, group in enumerate(lines.groups) if group in chosen]
        sequences = [lines.sequences[index] for index in indices]
        found = coefficients(sequences, settings, objective)
        if importance is not None:
            found = [share.times(importance[lines.groups[index]]) for index, share in zip(indices, found, strict=True)]
        if number < settings.updates.minibatches:
            shares |= zip(indices, found, strict=True)
        packed.append(pack(sequences, found, settings, places=[places[index] for index in indices], update=number))
    micros = [[micro for one in packed for micro in one.micros[rank]] for rank in range(settings.ranks)]
    whole = Packed(micros, sum(one.tokens for one in packed), sum(one.padding for one in packed))
    return Updates(whole, [shares[index] for index in range(len(lines.sequences))])


def deal(groups: int, settings: UpdateSettings, *, seed: int, step: int) -> list[set[int]]:
    """The numbers of the groups of each optimizer step: epoch after epoch all of them, in minibatches that differ by
    one group at most."""
    dealt: list[np.ndarray] = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng((seed, step, epoch)).permutation(groups)
        dealt += np.array_split(order, settings.minibatches)
    return [set(part.tolist()) for part in dealt]
