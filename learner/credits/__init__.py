"""Credits: what each turn of a batch is worth, before any loss sees it. One file each.

A credit is a function `(batch: Sequence[Group], settings) -> list of float32[turns]`, one array a group. NaN means that
the turn is not trained, whatever the objective; any other value is the turn's *advantage*: how much better the turn was
than what it is compared with, or its plain reward where a credit compares nothing. All tokens of its response share it.
Failed is not zero: turns of an episode that broke off (`left_out`) are NaN whatever the credit says, and a credit takes
them into no mean. An internalised answer is worth its reward whatever the credit says, and takes part in no mean. With
`learner.credit.mask_truncated` a turn whose response was cut is NaN whatever the credit says. The objective makes a
loss of it (learner/objectives/): the larger, the more likely it makes the turn. What 0 and less mean is the objective's
choice: grpo leaves a turn of 0 alone, while awr weighs it with exp(0) = 1.

`learner.credit.name` is one of NAMES, or `FILE.py:function`, or `FILE.py:Class` of a class with a static
method `credit` that states `facts` (learner/credit_config.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from learner.credit_config import CreditSettings, OwnCredit
from protocols import named
from protocols.errors import SettingError
from protocols.turns import ASIDES, INTERNALISED, TOO_LONG, Group, Role, Stop, Turn

NAMES = {
    name: f"learner.credits.{name}:{name}"
    for name in (
        *("group", "turnwise", "raw", "reflection", "trajectory", "attributing"),
        *("improvement", "anchor_state"),
    )
}
SETTING = "learner.credit.name"


def scored(turn: Turn) -> bool:
    """Whether the reward is the turn's own: a reflection repeats that of its attempt and an internalised answer that of
    the answer that it is, a verification's is for its verdict, a revision and an error have none."""
    return turn.role not in (*ASIDES, Role.REVISION, Role.ERROR) and INTERNALISED not in turn.extra


def left_out(turns: Sequence[Turn]) -> frozenset[int]:
    """Numbers of the turns that tell nothing: those of episodes that broke off, because the environment or a teacher
    failed, not the model. Turns that such an episode shares with one that came to its end, or that lead to an end of
    their own as in a search tree, still count. An episode whose reward is not finite has broken off, too.

    An episode that grew too long did not break off: it failed by the model's own words.
    """
    broken = {turn.episode for turn in turns if _breaks(turn)}
    if not broken:
        return frozenset()
    by_number, counting = {turn.turn: turn for turn in turns}, set()
    for turn in turns:
        whole = turn.episode not in broken or ((turn.terminated or turn.truncated) and math.isfinite(turn.reward))
        last = turn if whole and turn.role is not Role.ERROR else None
        while last is not None and last.turn not in counting:
            counting.add(last.turn)
            last = by_number.get(last.parent)
    return frozenset(by_number.keys() - counting)


def telling(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that are not left out."""
    untold = left_out(turns)
    return [turn for turn in turns if turn.turn not in untold]


def _breaks(turn: Turn) -> bool:
    if turn.role is Role.ERROR:
        return turn.extra.get("kind") != TOO_LONG
    return not math.isfinite(turn.reward)


def grown_too_long(turn: Turn) -> bool:
    """Whether its episode ended here since nothing more fitted the model's context."""
    return turn.role is Role.ERROR and turn.extra.get("kind") == TOO_LONG


def flat(values: Sequence[float]) -> bool:
    """Whether they are all the same, but for how float32 rewards round when they are summed in another order."""
    return not len(values) or bool(np.ptp(values) <= np.finfo(np.float32).eps * np.abs(values).max())


def find(settings: named.Named) -> Callable[[Sequence[Group], Any], list[np.ndarray]]:
    """The function of `learner.credit`. Raises SettingError when there is none."""
    return named.function(SETTING, settings.name, NAMES, "credit")


def stated(settings: CreditSettings) -> CreditSettings:
    """The settings with the facts that a credit of the user's own states; those of a known one hold theirs. Imports
    the user's module. Raises SettingError."""
    return settings.stating(SETTING) if isinstance(settings, OwnCredit) else settings


def credit(batch: Sequence[Group], settings: CreditSettings) -> list[np.ndarray]:
    """The advantage of every turn: one float32[turns] a group, NaN where the turn is not trained or is
    `left_out`, 0 for turns of role error. Raises SettingError when a credit of the user's own returns anything else."""
    if settings.too_long == "left_out":
        batch = [replace(group, turns=tuple(_broken_off(turn) for turn in group.turns)) for group in batch]
    advantages = find(settings)(batch, settings)
    if not isinstance(advantages, Sequence) or len(advantages) != len(batch):
        raise _wrong(settings, f"returned {_kind(advantages)}", f"a list of {len(batch)} arrays, one a group")
    return [_checked(group, values, settings) for group, values in zip(batch, advantages, strict=True)]


def _broken_off(turn: Turn) -> Turn:
    """An episode that grew too long, as one that broke off."""
    return replace(turn, extra=turn.extra | {"kind": "left out"}) if grown_too_long(turn) else turn


def _checked(group: Group, values: Any, settings: CreditSettings) -> np.ndarray:
    wanted = f"float32[{len(group.turns)}] for a group of {len(group.turns)} turns"
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (len(group.turns),):
        raise _wrong(settings, f"returned {_kind(values)}", wanted)
    untold = left_out(group.turns)
    values = np.where([turn.turn in untold for turn in group.turns], np.float32(np.nan), values)
    if np.isinf(values).any():
        raise _wrong(settings, "returned an infinite value", f"{wanted}, finite, or NaN where a turn is not trained")
    values = np.where([turn.role is Role.ERROR for turn in group.turns], np.float32(0), values)
    copies = [INTERNALISED in turn.extra and turn.turn not in untold for turn in group.turns]
    values = np.where(copies, np.array([turn.reward for turn in group.turns], np.float32), values)
    if not settings.mask_truncated:
        return values
    return np.where([turn.stop is Stop.LENGTH for turn in group.turns], np.float32(np.nan), values)


def _wrong(settings: named.Named, problem: str, wanted: str) -> SettingError:
    return SettingError(SETTING, f"{settings.name} {problem}", f"Return {wanted}")


def _kind(value: Any) -> str:
    """What a value is, in a word: float64[2, 3], list of 4, dict."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sequence) else type(value).__name__
