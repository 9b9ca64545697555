"""improvement: the reward of an answer, and a bonus for what it improved on the one before (SCoRe, arXiv 2409.12917).

For answer k of an episode with reward r_k:

    w_1 = r_1      w_k = r_k + bonus (r_k - r_{k-1})      A_k = (w_k - mean) / std over the answers k of the group

The paper adds the bonus to the second attempt's reward alone. Summed over an episode, as returns are, it would pay for
a wrong first answer: r_1 (1 - bonus) + ... So each answer has its own worth, and no part in that of later ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from learner.credit_config import ImprovementCredit
from learner.credits import scored, telling
from learner.credits.group import relative
from protocols.turns import Group, Role, Turn

Answer = tuple[int, int]
"""An episode, and the number of an answer in it, or of a verification."""


def improvement(batch: Sequence[Group], settings: ImprovementCredit) -> list[np.ndarray]:
    """See the module. A reflection is worth what the answer is that it leads to; an answer that broke off, or for which
    there was no room, takes no part. Verifications are paid for their verdict, and compared with those of the same
    number alone. While the first stage `holds`, first answers are not trained (their verifications are) and there is no
    bonus."""
    return [_of_group(one.turns, settings) for one in batch]


def _of_group(turns: Sequence[Turn], settings: ImprovementCredit) -> np.ndarray:
    told = telling(turns)
    worth = _worth(_rewards(told, scored), 0.0 if settings.holds else settings.bonus)
    answers = _advantages(worth, settings, first=1 if settings.holds else 0)
    verdicts = _advantages(_rewards(told, _is_verification), settings)
    of = (((verdicts if _is_verification(turn) else answers), (turn.episode, turn.index)) for turn in turns)
    return np.array([known.get(place, np.nan) for known, place in of], np.float32)


def _advantages(worth: dict[Answer, float], settings: ImprovementCredit, first: int = 0) -> dict[Answer, float]:
    """Of all from number `first` on, against those of the same number."""
    alike: dict[int, list[Answer]] = defaultdict(list)
    for answer in worth:
        alike[answer[1]].append(answer)
    advantages: dict[Answer, float] = {}
    for number, answers in alike.items():
        if number >= first:
            advantages |= zip(answers, relative([worth[answer] for answer in answers], settings.std), strict=True)
    return advantages


def _rewards(turns: Sequence[Turn], counts: Callable[[Turn], bool]) -> dict[Answer, float]:
    return {(turn.episode, turn.index): turn.reward for turn in turns if counts(turn) and turn.role is not Role.ERROR}


def _is_verification(turn: Turn) -> bool:
    return turn.role is Role.VERIFICATION


def _worth(rewards: dict[Answer, float], bonus: float) -> dict[Answer, float]:
    return {
        (episode, number): reward + bonus * (reward - rewards.get((episode, number - 1), reward))
        for (episode, number), reward in rewards.items()
    }
