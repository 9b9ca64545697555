"""Views: what the teacher of a micro-batch reads, and where it says what it thinks of each token that is trained.

sequence   x x y y y f f z z     the model, at the tokens y
view       x x y y y f f y y y   the teacher, at the last three: it has read what was said of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.batches.rows import fill_rows
from learner.config import LearnerSettings
from learner.sequences import Shares, TokenSequence


@dataclass(frozen=True, slots=True)
class Views:
    """Rows as those of a MicroBatch; `picks` are flat indices into them of the tokens before its N that count."""

    tokens: np.ndarray  # int64[B, S]
    positions: np.ndarray  # int64[B, S]
    picks: np.ndarray  # int64[N]


def views_of(sequences: Sequence[tuple[TokenSequence, Shares]], counting: int, settings: LearnerSettings) -> Views:
    """The views of a micro-batch's sequences, in the order in which its `counting` tokens are picked. It is one row of
    nothing where there are none. They need no gradient, so that more of them than `micro_tokens` go through at once."""
    views = [view for sequence, _ in sequences for view in sequence.views]
    lengths = [len(view.tokens) for view in views]
    rows = [[k] for k in range(len(views))] if settings.packing is False else fill_rows(lengths, settings.row_tokens)
    width = max((sum(lengths[k] for k in row) for row in rows), default=2)
    tokens = np.zeros((max(1, len(rows)), width), np.int64)
    positions = np.tile(np.arange(width), (len(tokens), 1))
    begins = np.zeros(len(views), np.int64)
    for number, row in enumerate(rows):
        at = 0
        for k in row:
            begins[k] = number * width + at
            tokens[number, at : at + lengths[k]] = views[k].tokens
            positions[number, at : at + lengths[k]] = np.arange(lengths[k])
            at += lengths[k]
        if len(row) > 1:
            positions[number, at:] = np.arange(width - at)
    picks, first = [], 0
    for sequence, share in sequences:
        spans = list(zip(sequence.views, begins[first : first + len(sequence.views)], strict=True))
        first += len(spans)
        where = np.zeros(len(sequence.tokens), np.int64)
        for view, begin in spans:
            end = min(len(where), view.start + len(view.tokens) - view.prompt)
            where[view.start : end] = begin + view.prompt - 1 + np.arange(end - view.start)
        picks.append(where[(share.loss != 0) | (share.kl != 0)])
    found = np.concatenate(picks) if picks else np.zeros(counting, np.int64)
    return Views(tokens, positions, found)
