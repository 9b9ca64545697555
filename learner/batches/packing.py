"""Packing: sequences into rows, rows into micro-batches of equal number on every rank.

Sequences lie end to end in a row; positions restart with each, by which attention knows where one ends:

    tokens     a a a a b b b . .      positions  0 1 2 3 0 1 2 0 1

Without packing a row holds one sequence, and its padding goes on with it, so that nothing needs to know where it ends:

    tokens     a a a a                positions  0 1 2 3
               b b b .                           0 1 2 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from learner.batches.rows import check_fit, fill_rows
from learner.batches.views import Views, views_of
from learner.config import LearnerSettings
from learner.sequences import Shares, TokenSequence

FLOATS = (np.float32,) * 4
TYPES = (np.int64, np.int64, *FLOATS, np.bool_, np.bool_, np.float32, np.int64, np.int64)  # from `picks` on


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank forwards at once: B rows of S tokens, and the N of them that are trained or anchored.

    `picks` are indices into a flat [B*S] array: the token *before* the one that counts, whose output predicts it.
    `coefficients` and `divergences` are the tokens' shares of the loss of one optimizer step, the batch's number
    `update`, so its micro-batches and ranks just add up. A sequence is whole in one row, with all its tokens that
    count. `places` tell a token of the batch from all others, in whatever optimizer step it is. `chunks` is the same on
    all ranks: into how many pieces the log-probs are cut. `views` is what a teacher reads, where there is one: then
    every micro-batch of the optimizer step has some, so that ranks forward as often.
    """

    tokens: np.ndarray  # int64[B, S]
    positions: np.ndarray  # int64[B, S]
    picks: np.ndarray  # int64[N]
    targets: np.ndarray  # int64[N]
    coefficients: np.ndarray  # float32[N], of the objective; above 0 where the token is trained
    divergences: np.ndarray  # float32[N], of the divergence from the start model
    advantages: np.ndarray  # float32[N]
    sampler: np.ndarray  # float32[N], log-probs of the policy that sampled
    sampled: np.ndarray  # bool[N]
    navigated: np.ndarray  # bool[N]
    temperatures: np.ndarray  # float32[N], of sampling; 0 where that is the recipe's
    sequences: np.ndarray  # int64[N], numbers of the sequences of this micro-batch, in order
    places: np.ndarray  # int64[N]
    chunks: int = 1
    update: int = 0
    views: Views | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("chunks", "update", "views")}


@dataclass(frozen=True, slots=True)
class Packed:
    """Micro-batches of each rank; `tokens` are forwarded over all ranks, `padding` of them for nothing. Both are 0
    where no token weighs, for then nothing is forwarded."""

    micros: list[list[MicroBatch]]
    tokens: int
    padding: int


def pack(
    sequences: Sequence[TokenSequence],
    shares: Sequence[Shares],
    settings: LearnerSettings,
    *,
    places: Sequence[int] | None = None,
    update: int = 0,
) -> Packed:
    """Packs the sequences that have a share other than 0. Ranks short of work get ones without weight.

    `places` are those of the sequences' first tokens in the batch (None: they are all of it, end to end), `update` is
    the number of the optimizer step.
    """
    offsets = [0, *accumulate(len(sequence.tokens) for sequence in sequences)] if places is None else places
    useful = [index for index, share in enumerate(shares) if share.loss.any() or share.kl.any()]
    sequences, shares = [sequences[index] for index in useful], [shares[index] for index in useful]
    offsets = [offsets[index] for index in useful]
    lengths = [len(sequence.tokens) for sequence in sequences]
    divide = alone if settings.packing is False else together
    divided = divide(lengths, settings)
    micros = [
        _micro([[(sequences[k], shares[k], offsets[k]) for k in row] for row in rows], settings.logprob_chunk)
        for rows in divided
    ]
    if any(one.views for one in sequences):
        orders = ([k for row in rows for k in row] for rows in divided)
        micros = [
            replace(micro, views=views_of([(sequences[k], shares[k]) for k in order], len(micro.picks), settings))
            for micro, order in zip(micros, orders, strict=True)
        ]
    for start in range(0, len(micros), settings.ranks):
        abreast = micros[start : start + settings.ranks]
        chunks = max(micro.chunks for micro in abreast)
        micros[start : start + settings.ranks] = [replace(micro, chunks=chunks, update=update) for micro in abreast]
    tokens = sum(micro.tokens.size + (micro.views.tokens.size if micro.views else 0) for micro in micros)
    tokens = tokens if useful else 0
    read = sum(len(view.tokens) for sequence in sequences for view in sequence.views)
    padding = tokens - read - sum(len(sequence.tokens) for sequence in sequences)
    return Packed([micros[rank :: settings.ranks] for rank in range(settings.ranks)], tokens, padding)


def together(lengths: Sequence[int], settings: LearnerSettings) -> list[list[list[int]]]:
    """Which sequences share the rows of each micro-batch, as many of these on every rank."""
    rows = fill_rows(lengths, settings.row_tokens)
    rounds = max(1, -(-len(rows) * settings.row_tokens // (settings.micro_tokens * settings.ranks)))
    return [[rows[row] for row in group] for group in np.array_split(np.arange(len(rows)), rounds * settings.ranks)]


def alone(lengths: Sequence[int], settings: LearnerSettings) -> list[list[list[int]]]:
    """The sequences of each micro-batch, one a row, as many micro-batches on every rank.

    Those of like length stand together, so that little is padding, and the longest come first, so that ranks that work
    abreast have about as much to do. Rows times the longest of them is at most `micro_tokens`.
    """
    check_fit(lengths, settings.row_tokens)
    micros: list[list[int]] = [[]]
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if micros[-1] and (len(micros[-1]) + 1) * lengths[micros[-1][0]] > settings.micro_tokens:
            micros.append([])
        micros[-1].append(item)
    while len(micros) % settings.ranks:
        most = max(range(len(micros)), key=lambda index: len(micros[index]))
        half = -(-len(micros[most]) // 2)
        micros[most : most + 1] = [micros[most][:half], micros[most][half:]]
    return [[[item] for item in micro] for micro in micros]


def _micro(rows: list[list[tuple[TokenSequence, Shares, int]]], logprob_chunk: int) -> MicroBatch:
    width = max((sum(len(sequence.tokens) for sequence, *_ in row) for row in rows), default=2)
    tokens = np.zeros((max(1, len(rows)), width), np.int64)
    positions = np.tile(np.arange(width), (len(tokens), 1))
    picked: list[tuple[np.ndarray, ...]] = []
    for number, row in enumerate(rows):
        start = 0
        for sequence, share, place in row:
            end = start + len(sequence.tokens)
            tokens[number, start:end] = sequence.tokens
            positions[number, start:end] = np.arange(end - start)
            counting = np.flatnonzero((share.loss != 0) | (share.kl != 0))
            known = ("advantages", "logprobs", "sampled", "navigated", "temperatures")
            columns = (*share, *(getattr(sequence, name) for name in known))
            picked.append(
                (
                    number * width + start + counting - 1,
                    sequence.tokens[counting],
                    *(column[counting] for column in columns),
                    np.full(len(counting), len(picked)),
                    place + counting,
                )
            )
            start = end
        if len(row) > 1:
            positions[number, start:] = np.arange(width - start)
    if not picked:  # a rank without work still takes part in every collective, with one token that weighs nothing
        picked.append(tuple(np.zeros(1) for _ in TYPES))
    arrays = [np.concatenate(parts).astype(kind) for parts, kind in zip(zip(*picked, strict=True), TYPES, strict=True)]
    return MicroBatch(tokens, positions, *arrays, chunks=-(-len(arrays[0]) // logprob_chunk))
