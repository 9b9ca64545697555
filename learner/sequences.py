"""Sequences: a group's graph of turns as root-to-leaf token sequences, each turn's loss counting once.

turns              0 -> 1 -> 2
                     `-> 3          gives the sequences 0 1 2 and 0 3; in the second, turn 0 is context only
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from protocols.turns import Group, Role, Turn


class View(NamedTuple):
    """What a teacher reads of one turn: `tokens` int32 are the context that it has and the turn's response, which
    begins there at `prompt`, and at `start` in the sequence."""

    start: int
    prompt: int
    tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One path of a group, T tokens; arrays are aligned with `tokens`, and speak of the token at their own index.

    `role_weights` is 0 where the token is not trained. `logprobs` are the sampler's, 0 where the token
    was not `sampled`. `turns` numbers the turns of the whole batch, -1 where nothing counts here. `anchored` tokens
    are not trained but held to the start model.
    """

    tokens: np.ndarray  # int32[T]
    advantages: np.ndarray  # float32[T], 0 where not trained
    role_weights: np.ndarray  # float32[T], those of `learner.roles`
    logprobs: np.ndarray  # float32[T]
    sampled: np.ndarray  # bool[T]
    turns: np.ndarray  # int32[T]
    anchored: np.ndarray  # bool[T]
    navigated: np.ndarray  # bool[T], whether they were sampled with experience in the question
    temperatures: np.ndarray  # float32[T], at which they were sampled; 0 where that is the recipe's
    views: tuple[View, ...] = field(
        default=(), kw_only=True
    )  # of the turns that are trained, where the objective has a teacher


class Shares(NamedTuple):
    """Each token's share of the batch's loss: `loss` float32[T] of the objective's, `kl` float32[T] of the divergence
    from the start model. Tokens with neither need no forward pass."""

    loss: np.ndarray
    kl: np.ndarray

    def times(self, factor: np.float32) -> Shares:
        return Shares(self.loss * factor, self.kl * factor)


@dataclass(frozen=True, slots=True)
class Linearised:
    """All sequences of a batch that hold a trained or anchored token, the index of each one's group in the batch, the
    turns that they number, and how many were cut at `row_tokens`."""

    sequences: list[TokenSequence]
    groups: list[int]
    turns: list[Turn]
    truncated: int


def brought_along(turn: Turn) -> bool:
    """Whether this is the answer that the task of a dataset of failures begins with: the model did sample it, before
    the run, so that nothing else of an authored turn holds for it."""
    return turn.role is Role.ATTEMPT and turn.after < 0 and bool(np.isnan(turn.logprobs).all())


def contexts(group: Group) -> dict[int, np.ndarray]:
    """Of each turn that another one answers in time (`Turn.after`): the int32 tokens that the other was sampled after,
    which hold the turn and what was said of it. So a turn has read the feedback on the one before it; nothing more of
    it is sent or kept. Where several follow, it is the first of them; an error says nothing."""
    turns = {turn.turn: turn for turn in group.turns if turn.role is not Role.ERROR}
    found: dict[int, np.ndarray] = {}
    for turn in turns.values():
        if turn.after in turns and turn.after not in found:
            parts, parent = [turn.prompt], turn.parent
            while parent >= 0:
                parts += [turns[parent].response, turns[parent].prompt]
                parent = turns[parent].parent
            found[turn.after] = np.concatenate(parts[::-1])
    return found


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
