"""anchor_state: steps from the same state compared, beside whole episodes (GiGPO, arXiv 2505.10978).

For step t of episode i, taken from state s, with r the rewards of its steps:

    R_it = sum_{k >= t} discount^(k - t) r_ik      A_it = what credit `group` gives episode i + weight S_it
    S_it = (R_it - mean) / std over all steps of the group from s, of this episode too; 0 where it is the only one
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from learner.credit_config import AnchorStateCredit
from learner.credits import left_out, scored
from learner.credits.group import relative, returns_of
from protocols.turns import Group, Role, Turn

Step = tuple[int, int]
"""An episode, and the number of a step in it: a reflection is part of the answer it leads to."""


def anchor_state(batch: Sequence[Group], settings: AnchorStateCredit) -> list[np.ndarray]:
    """See the module. Episodes that broke off take no part; one that grew too long counts as in credit `group`."""
    return [_of_group(one.turns, settings) for one in batch]


def _of_group(turns: Sequence[Turn], settings: AnchorStateCredit) -> np.ndarray:
    returns = returns_of(turns)
    outcomes = dict(zip(returns, relative(list(returns.values()), settings.std), strict=True))
    steps = _steps(turns)
    states, to_go = _states(steps), _to_go(steps, settings.discount)
    alike: dict[Hashable, list[Step]] = defaultdict(list)
    for step, state in states.items():
        alike[state].append(step)
    compared: dict[Step, float] = {}
    for same in alike.values():
        compared |= zip(same, relative([to_go[step] for step in same], settings.std), strict=True)
    worth = {step: outcomes[step[0]] + settings.weight * value for step, value in compared.items()}
    return np.array([worth.get((turn.episode, turn.index), np.nan) for turn in turns], np.float32)


def _steps(turns: Sequence[Turn]) -> dict[Step, list[Turn]]:
    """The turns of each step of an episode that tells something, in their order."""
    untold, steps = left_out(turns), defaultdict(list)
    for turn in turns:
        if turn.role is not Role.ERROR and turn.turn not in untold:
            steps[turn.episode, turn.index].append(turn)
    return dict(sorted(steps.items()))


def _states(steps: dict[Step, list[Turn]]) -> dict[Step, Hashable]:
    """Where each step begins: what the environment called the state after the step before, else what was heard."""
    states: dict[Step, Hashable] = {}
    for (episode, number), turns in steps.items():
        before = steps.get((episode, number - 1), [])
        called = before[-1].extra.get("state") if before else None
        states[episode, number] = turns[0].prompt.tobytes() if called is None else called
    return states


def _to_go(steps: dict[Step, list[Turn]], discount: float) -> dict[Step, float]:
    """R of each step."""
    to_go: dict[Step, float] = {}
    for (episode, number), turns in reversed(steps.items()):
        rewards = [turn.reward for turn in turns if scored(turn)]
        later = to_go.get((episode, number + 1), 0.0)
        to_go[episode, number] = sum(rewards) + discount * later
    return to_go
