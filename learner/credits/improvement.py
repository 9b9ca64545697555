"""improvement: the reward of an answer, and a bonus for what it improved on the one before (SCoRe, arXiv 2409.12917).

For answer k of an episode with reward r_k:

    w_1 = r_1      w_k = r_k + bonus (r_k - r_{k-1})      A_k = (w_k - mean) / std over the answers k of the group

The paper adds the bonus to the second attempt's reward alone. Summed over an episode, as returns are, it would pay for
a wrong first answer: r_1 (1 - bonus) + ... So each answer has its own worth, and no part in that of later ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.credit_config import ImprovementCredit
from learner.credits import left_out, scored
from learner.credits.group import relative
from protocols.turns import Group, Role, Turn

Answer = tuple[int, int]
"""An episode, and the number of an answer in it."""


def improvement(batch: Sequence[Group], settings: ImprovementCredit) -> list[np.ndarray]:
    """See the module. A reflection is worth what the answer is that it leads to; an answer that broke off, or for which
    there was no room, takes no part. While the first stage `holds`, first answers are not trained and there is no
    bonus."""
    return [_of_group(one.turns, settings) for one in batch]


def _of_group(turns: Sequence[Turn], settings: ImprovementCredit) -> np.ndarray:
    worth = _worth(_rewards(turns), 0.0 if settings.holds else settings.bonus)
    alike: dict[int, list[Answer]] = defaultdict(list)
    for answer in worth:
        alike[answer[1]].append(answer)
    advantages: dict[Answer, float] = {}
    for number, answers in alike.items():
        if settings.holds and number == 0:
            continue
        advantages |= zip(answers, relative([worth[answer] for answer in answers], settings.std), strict=True)
    return np.array([advantages.get((turn.episode, turn.index), np.nan) for turn in turns], np.float32)


def _rewards(turns: Sequence[Turn]) -> dict[Answer, float]:
    untold = left_out(turns)
    return {
        (turn.episode, turn.index): turn.reward
        for turn in turns
        if scored(turn) and turn.role is not Role.ERROR and turn.turn not in untold
    }


def _worth(rewards: dict[Answer, float], bonus: float) -> dict[Answer, float]:
    return {
        (episode, number): reward + bonus * (reward - rewards.get((episode, number - 1), reward))
        for (episode, number), reward in rewards.items()
    }
