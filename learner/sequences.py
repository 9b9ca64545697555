"""Sequences: a group's graph of turns as root-to-leaf token sequences, each turn's loss counting once.

turns              0 -> 1 -> 2
                     `-> 3          gives the sequences 0 1 2 and 0 3; in the second, turn 0 is context only
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from learner.config import LearnerSettings
from protocols.turns import Group, Role, Turn


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One path of a group, T tokens; arrays are aligned with `tokens`, and speak of the token at their own place.

    `weights` is the role's weight where the token is trained, else 0. `logprobs` are the sampler's, 0 where the token
    was not `sampled`. `turns` numbers the trained turns of the whole batch, -1 where nothing is trained.
    """

    tokens: np.ndarray  # int32[T]
    advantages: np.ndarray  # float32[T]
    weights: np.ndarray  # float32[T]
    logprobs: np.ndarray  # float32[T]
    sampled: np.ndarray  # bool[T]
    turns: np.ndarray  # int32[T]


@dataclass(frozen=True, slots=True)
class Linearised:
    """All sequences of a batch that hold a trained token, the place of each one's group in the batch, how many turns
    they number, and how many were cut at `row_tokens`."""

    sequences: list[TokenSequence]
    groups: list[int]
    turns: int
    truncated: int


def linearise(batch: Sequence[Group], advantages: Sequence[np.ndarray], settings: LearnerSettings) -> Linearised:
    """The sequences of a batch. Tokens and log-probs are those of the turns, bit for bit.

    Under `grpo` only sampled tokens are trained (an authored one has no ratio); `awr` and `sft` also train authored
    ones. A sequence's first token is never trained, for nothing predicts it.
    """
    sequences: list[TokenSequence] = []
    groups: list[int] = []
    trained = truncated = 0
    for number, (group, worth) in enumerate(zip(batch, advantages, strict=True)):
        counted: set[int] = set()
        for path in paths(group):
            fresh = {turn.turn: trained + place for place, turn in enumerate(path) if turn.turn not in counted}
            counted.update(fresh)
            trained += len(path)
            sequence = _sequence(path, worth, fresh, settings)
            truncated += len(sequence.tokens) > settings.row_tokens
            sequence = _cut(sequence, settings.row_tokens)
            if sequence.weights.any():
                sequences.append(sequence)
                groups.append(number)
    return Linearised(sequences, groups, trained, truncated)


def paths(group: Group) -> Iterator[list[Turn]]:
    """Root-to-leaf paths in order of their leaves; turns of role error lie on none."""
    turns = {turn.turn: turn for turn in group.turns if turn.role is not Role.ERROR}
    parents = {turn.parent for turn in turns.values()}
    for leaf in turns.values():
        if leaf.turn in parents:
            continue
        path = [leaf]
        while path[-1].parent >= 0:
            path.append(turns[path[-1].parent])
        yield path[::-1]


def _sequence(path: list[Turn], worth: np.ndarray, fresh: dict[int, int], settings: LearnerSettings) -> TokenSequence:
    authored_too = settings.objective.name != "grpo"
    columns: list[tuple[np.ndarray, ...]] = []
    for turn in path:
        prompt, response = len(turn.prompt), len(turn.response)
        sampled = ~np.isnan(turn.logprobs)
        weight = settings.role_weight(turn.role) if turn.turn in fresh else 0.0
        weights = np.where(sampled | authored_too, weight, 0.0)
        blank = np.zeros(prompt)
        columns.append(
            (
                np.concatenate([turn.prompt, turn.response]),
                np.concatenate([blank, np.full(response, worth[turn.turn])]),
                np.concatenate([blank, weights]),
                np.concatenate([blank, np.where(sampled, turn.logprobs, 0.0)]),
                np.concatenate([blank, sampled]),
                np.concatenate([blank - 1, np.full(response, fresh.get(turn.turn, -1))]),
            )
        )
    types = (np.int32, np.float32, np.float32, np.float32, np.bool_, np.int32)
    arrays = [np.concatenate(parts).astype(kind) for parts, kind in zip(zip(*columns, strict=True), types, strict=True)]
    arrays[2][:1] = 0.0
    return TokenSequence(*arrays)


def _cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """Without what lies beyond `length`, nor what follows the last trained token: nothing there changes the loss."""
    trained = np.flatnonzero(sequence.weights[:length])
    end = int(trained[-1]) + 1 if len(trained) else 0
    return TokenSequence(*(getattr(sequence, name)[:end] for name in TokenSequence.__slots__))
