"""Transcripts: a group as one line of JSON, for people to read with `redraft view`.

A line has a head, all that a list of groups shows, and then the turns. Who looks for a group reads heads alone, up to
BODY:

    {"step": 12, "version": 12, "label": "training", "task": "signs/7128", ..., "turns": [{"turn": 0, ...}, ...]}

`marks` of a head has a string for each episode, a character for each of its turns: r right, w wrong, e error,
- an action that decided nothing, . a reflection or a revision. `fixed` counts right answers whose last decided
predecessor was wrong, `broken` wrong ones after a right one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protocols import strict_json
from protocols.turns import Role, Turn, role_name

BODY = b',"turns":['
RIGHT, WRONG, ERROR, STEP, ASIDE = "rwe-."
MARKS = {Role.REFLECTION: ASIDE, Role.VERIFICATION: ASIDE, Role.REVISION: ASIDE, Role.ERROR: ERROR}


def line(facts: dict, turns: Sequence[dict]) -> bytes:
    """The line of a group: `facts` of the head, then what `told` made of its turns."""
    return strict_json.dumps(facts | {"turns": turns}, separators=(",", ":")).encode() + b"\n"


def head(turns: Sequence[Turn]) -> dict:
    """What the turns of one group say in its head: marks, fixed, broken, errors, size (turns), tokens (of responses).

    `turns` are in order of their numbers.
    """
    marks: dict[int, str] = {}
    decided: dict[int, str] = {}  # by turn: the last of right or wrong on the way to it
    fixed = broken = 0
    for turn in turns:
        found, before = mark(turn), decided.get(turn.after, "")
        marks[turn.episode] = marks.get(turn.episode, "") + found
        decided[turn.turn] = found if found in (RIGHT, WRONG) else before
        fixed += (before, found) == (WRONG, RIGHT)
        broken += (before, found) == (RIGHT, WRONG)
    return {
        "marks": [marks[episode] for episode in sorted(marks)],
        "fixed": fixed,
        "broken": broken,
        "errors": sum(turn.role is Role.ERROR for turn in turns),
        "size": len(turns),
        "tokens": sum(len(turn.response) for turn in turns),
    }


def mark(turn: Turn) -> str:
    """How a turn ended, in a character. An action is wrong where it was refused, or ended the episode in failure."""
    if turn.role in MARKS:
        return MARKS[turn.role]
    if turn.extra.get("success", False):
        return RIGHT
    undecided = turn.role is Role.ACTION and not (turn.extra.get("refused") or turn.terminated or turn.truncated)
    return STEP if undecided else WRONG


def told(turn: Turn, advantage: float = math.nan, weights: np.ndarray | None = None) -> dict:
    """A turn in JSON values. Tokens are the turn's own; numbers are rounded for reading.

    `advantage` NaN: it is not trained. `weights` float32[R] of its response tokens, None where nothing was trained.
    """
    return {
        "turn": turn.turn,
        "parent": turn.parent,
        "after": turn.after,
        "episode": turn.episode,
        "index": turn.index,
        "role": role_name(turn),
        "mark": mark(turn),
        "prompt": turn.prompt.tolist(),
        "response": turn.response.tolist(),
        "logprobs": [_rounded(value) for value in turn.logprobs.tolist()],
        "versions": turn.versions,
        "reward": _rounded(turn.reward),
        "advantage": _rounded(float(advantage)),
        "weights": None if weights is None else [float(f"{value:.3g}") for value in weights.tolist()],
        "timing": [_rounded(seconds) for seconds in turn.timing],
        "stop": turn.stop.name.lower(),
        "terminated": turn.terminated,
        "truncated": turn.truncated,
        "extra": turn.extra,
    }


def _rounded(value: float) -> float | None:
    """Four decimals; None for what JSON cannot say."""
    return round(value, 4) if math.isfinite(value) else None
