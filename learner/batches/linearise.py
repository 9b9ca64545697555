"""Linearising: the paths of a batch's groups as token sequences, each turn's loss counting once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from learner.config import LearnerSettings
from learner.objectives.base import Objective
from learner.sequences import Linearised, TokenSequence, View, brought_along, contexts, paths
from protocols.turns import OWN_ROLE, TEMPERATURE, Group, Turn


def linearise(
    batch: Sequence[Group], advantages: Sequence[np.ndarray], settings: LearnerSettings, objective: Objective
) -> Linearised:
    """The sequences of a batch. Tokens and log-probs are those of the turns, bit for bit.

    A turn is trained where its role has a weight and its advantage is not NaN. Objectives that need a ratio train only
    its sampled tokens (an authored one has none), others also authored ones. With `objective.anchor` the sampled
    tokens of the other turns are anchored, and so are answers that tasks brought along. A sequence's first token counts
    for nothing, for nothing predicts it. With `objective.teacher` a turn is trained only where another one followed it:
    what that was sampled after is the teacher's view (see `contexts`), which must fit a row.
    """
    sequences: list[TokenSequence] = []
    groups: list[int] = []
    turns: list[Turn] = []
    truncated = 0
    for number, (group, worth) in enumerate(zip(batch, advantages, strict=True)):
        counted: set[int] = set()
        views = contexts(group) if objective.teacher is not None else None
        for path in paths(group):
            fresh = {turn.turn: len(turns) + index for index, turn in enumerate(path) if turn.turn not in counted}
            counted.update(fresh)
            turns += path
            sequence = _sequence(path, worth, fresh, settings, objective)
            cut = len(sequence.tokens) > settings.row_tokens
            if views is not None:
                sequence, too_long = _viewed(sequence, path, views, settings.row_tokens)
                cut |= too_long
            truncated += cut
            sequence = _cut(sequence, settings.row_tokens)
            if len(sequence.tokens):
                sequences.append(sequence)
                groups.append(number)
    return Linearised(sequences, groups, turns, truncated)


def _sequence(
    path: list[Turn], worth: np.ndarray, fresh: dict[int, int], settings: LearnerSettings, objective: Objective
) -> TokenSequence:
    columns: list[tuple[np.ndarray, ...]] = []
    for turn in path:
        prompt, response = len(turn.prompt), len(turn.response)
        sampled = ~np.isnan(turn.logprobs)
        counts = turn.turn in fresh
        valued = counts and not np.isnan(worth[turn.turn])
        weight = settings.role_weight(turn.role, turn.extra.get(OWN_ROLE)) if valued else 0.0
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
                np.full(prompt + response, bool(turn.extra.get("navigated"))),
                np.full(prompt + response, turn.extra.get(TEMPERATURE, 0.0)),
            )
        )
    types = (np.int32, np.float32, np.float32, np.float32, np.bool_, np.int32, np.bool_, np.bool_, np.float32)
    arrays = [np.concatenate(parts).astype(kind) for parts, kind in zip(zip(*columns, strict=True), types, strict=True)]
    sequence = TokenSequence(*arrays)
    sequence.role_weights[:1] = sequence.anchored[:1] = 0
    return sequence


def _viewed(
    sequence: TokenSequence, path: list[Turn], contexts: dict[int, np.ndarray], longest: int
) -> tuple[TokenSequence, bool]:
    """The sequence with the views of its trained turns, and whether one was longer than a row. A turn without a view is
    not trained."""
    views, weights, too_long, start = [], np.zeros_like(sequence.role_weights), False, 0
    for turn in path:
        start += len(turn.prompt)
        end = start + len(turn.response)
        context = contexts.get(turn.turn)
        if context is not None and sequence.role_weights[start:end].any():
            if len(context) + len(turn.response) > longest:
                too_long = True
            else:
                weights[start:end] = sequence.role_weights[start:end]
                views.append(View(start, len(context), np.concatenate([context, turn.response])))
        start = end
    advantages = np.where(weights > 0, sequence.advantages, np.float32(0))
    return replace(sequence, role_weights=weights, advantages=advantages, views=tuple(views)), too_long


def _cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """Without what lies beyond `length`, nor what follows the last token that counts: nothing there changes the
    loss."""
    counting = np.flatnonzero(sequence.role_weights[:length] + sequence.anchored[:length])
    end = int(counting[-1]) + 1 if len(counting) else 0
    arrays = {name: getattr(sequence, name)[:end] for name in TokenSequence.__slots__ if name != "views"}
    return TokenSequence(**arrays, views=tuple(view for view in sequence.views if view.start < end))
