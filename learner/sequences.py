"""Sequences: a group's graph of turns as root-to-leaf token sequences, each turn's loss counting once.

turns              0 -> 1 -> 2
                     `-> 3          gives the sequences 0 1 2 and 0 3; in the second, turn 0 is context only
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learner.config import LearnerSettings

if TYPE_CHECKING:
    from learner.objectives.base import Objective
from protocols.turns import Group, Role, Turn


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One path of a group, T tokens; arrays are aligned with `tokens`, and speak of the token at their own place.

    `weights` is the role's weight where the token is trained, else 0. `logprobs` are the sampler's, 0 where the token
    was not `sampled`. `turns` numbers the turns of the whole batch, -1 where nothing counts here. `anchored` tokens
    are not trained but held to the start model.
    """

    tokens: np.ndarray  # int32[T]
    advantages: np.ndarray  # float32[T], 0 where not trained
    weights: np.ndarray  # float32[T]
    logprobs: np.ndarray  # float32[T]
    sampled: np.ndarray  # bool[T]
    turns: np.ndarray  # int32[T]
    anchored: np.ndarray  # bool[T]


class Shares(NamedTuple):
    """Each token's share of the batch's loss: `loss` float32[T] of the objective's, `kl` float32[T] of the divergence
    from the start model. Tokens with neither need no forward pass."""

    loss: np.ndarray
    kl: np.ndarray

    def times(self, factor: np.float32) -> Shares:
        return Shares(self.loss * factor, self.kl * factor)


@dataclass(frozen=True, slots=True)
class Linearised:
    """All sequences of a batch that hold a trained or anchored token, the place of each one's group in the batch, the
    turns that they number, and how many were cut at `row_tokens`."""

    sequences: list[TokenSequence]
    groups: list[int]
    turns: list[Turn]
    truncated: int


def linearise(
    batch: Sequence[Group], advantages: Sequence[np.ndarray], settings: LearnerSettings, objective: Objective
) -> Linearised:
    """The sequences of a batch. Tokens and log-probs are those of the turns, bit for bit.

    A turn is trained where its role has a weight and its advantage is not NaN. Objectives that need a ratio train only
    its sampled tokens (an authored one has none), others also authored ones. With `objective.anchor` the sampled
    tokens of the other turns are anchored, and so are answers that tasks brought along. A sequence's first token counts
    for nothing, for nothing predicts it.
    """
    sequences: list[TokenSequence] = []
    groups: list[int] = []
    turns: list[Turn] = []
    truncated = 0
    for number, (group, worth) in enumerate(zip(batch, advantages, strict=True)):
        counted: set[int] = set()
        for path in paths(group):
            fresh = {turn.turn: len(turns) + place for place, turn in enumerate(path) if turn.turn not in counted}
            counted.update(fresh)
            turns += path
            sequence = _sequence(path, worth, fresh, settings, objective)
            truncated += len(sequence.tokens) > settings.row_tokens
            sequence = _cut(sequence, settings.row_tokens)
            if len(sequence.tokens):
                sequences.append(sequence)
                groups.append(number)
    return Linearised(sequences, groups, turns, truncated)


def brought_along(turn: Turn) -> bool:
    """Whether this is the answer that the task of a dataset of failures begins with: the model did sample it, before
    the run, so that nothing else of an authored turn holds for it."""
    return turn.role is Role.ATTEMPT and turn.after < 0 and bool(np.isnan(turn.logprobs).all())


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


def _sequence(
    path: list[Turn], worth: np.ndarray, fresh: dict[int, int], settings: LearnerSettings, objective: Objective
) -> TokenSequence:
    columns: list[tuple[np.ndarray, ...]] = []
    for turn in path:
        prompt, response = len(turn.prompt), len(turn.response)
        sampled = ~np.isnan(turn.logprobs)
        counts = turn.turn in fresh
        weight = settings.role_weight(turn.role) if counts and not np.isnan(worth[turn.turn]) else 0.0
        weights = np.where(sampled | objective.authored, weight, 0.0)
        anchors = counts and weight == 0 and objective.anchor > 0
        blank = np.zeros(prompt)
        columns.append(
            (
                np.concatenate([turn.prompt, turn.response]),
                np.concatenate([blank, np.where(weights > 0, worth[turn.turn], 0.0)]),
                np.concatenate([blank, weights]),
                np.concatenate([blank, np.where(sampled, turn.logprobs, 0.0)]),
                np.concatenate([blank, sampled]),
                np.concatenate([blank - 1, np.full(response, fresh.get(turn.turn, -1))]),
                np.concatenate([blank, (sampled | brought_along(turn)) & anchors]),
            )
        )
    types = (np.int32, np.float32, np.float32, np.float32, np.bool_, np.int32, np.bool_)
    arrays = [np.concatenate(parts).astype(kind) for parts, kind in zip(zip(*columns, strict=True), types, strict=True)]
    sequence = TokenSequence(*arrays)
    sequence.weights[:1] = sequence.anchored[:1] = 0
    return sequence


def _cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """Without what lies beyond `length`, nor what follows the last token that counts: nothing there changes the
    loss."""
    counting = np.flatnonzero(sequence.weights[:length] + sequence.anchored[:length])
    end = int(counting[-1]) + 1 if len(counting) else 0
    return TokenSequence(*(getattr(sequence, name)[:end] for name in TokenSequence.__slots__))
