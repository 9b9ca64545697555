"""Episodes of an evaluation and their figures: of answers that are tried again, and of many actions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from learner.credits import grown_too_long
from protocols.evaluation import NOTHING, ActionFigures, AnswerFigures, Figure, Kind
from protocols.responses import Responses
from protocols.turns import Role, Turn

ROLES: dict[Kind, tuple[Role, ...]] = {"answers": (Role.ATTEMPT, Role.RETRY), "actions": (Role.ACTION,)}
LOOPS = (1, 2, 3)  # lengths of loops that are counted apart


@dataclass(frozen=True, slots=True)
class Try:
    """One answer or action. `answer` is its canonical form, or None; of an action that could not be parsed, its ids."""

    success: bool
    answer: str | bytes | None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Episode:
    """Its answers or actions in the order in which they were given; `too_long`: it ended since nothing more fitted the
    model's context; `broken`: since the environment failed, so that it tells nothing of the model."""

    tries: tuple[Try, ...]
    too_long: bool = False
    broken: bool = False

    @property
    def success(self) -> bool:
        """Whether it ended with a success."""
        return bool(self.tries) and self.tries[-1].success


MISSING = Try(False, None)


def episodes(turns: Sequence[Turn], kind: Kind) -> list[Episode]:
    """The episodes of one task, by their numbers. Reflections do not count as answers."""
    tries: dict[int, list[Try]] = {}
    too_long, broken = set(), set()
    for turn in sorted(turns, key=lambda turn: turn.turn):
        found = tries.setdefault(turn.episode, [])
        if turn.role in ROLES[kind]:
            found.append(_try(turn))
        elif turn.role is Role.ERROR:
            (too_long if grown_too_long(turn) else broken).add(turn.episode)
    return [Episode(tuple(tries[number]), number in too_long, number in broken) for number in sorted(tries)]


def _try(turn: Turn) -> Try:
    answer = turn.extra.get("answer")
    if answer is None and turn.role is Role.ACTION:
        answer = turn.response.tobytes()
    return Try(bool(turn.extra.get("success", False)), answer, bool(turn.extra.get("refused", False)))


def generations(turns: Sequence[Turn]) -> int:
    """How many of these turns were sampled, not authored."""
    return sum(len(turn.response) > 0 and bool(np.isfinite(turn.logprobs).all()) for turn in turns)


# Answers -------------------------------------------------------------------------------------------------------------


def of_answers(
    played: Sequence[Episode],
    turns: int,
    responses: Responses,
    together: Sequence[Sequence[Episode]] | None = None,
) -> AnswerFigures:
    """The figures of one episode a task; with `together` also those of the first answers of all episodes of each."""
    whole = [answers(episode, turns) for episode in played]
    right_NT = np.array([[answer.success for answer in row] for row in whole], bool).reshape(len(whole), turns)
    same_NT = np.array([[_same(*pair) for pair in pairwise(row)] for row in whole], bool).reshape(len(whole), turns - 1)
    before_NT, after_NT = right_NT[:, :-1], right_NT[:, 1:]
    wrong_N = (~before_NT).sum(1)
    firsts = [[answers(episode, 1)[0] for episode in task] for task in together or []]
    return AnswerFigures(
        accuracy_by_turn=tuple(mean(right_NT[:, turn]) for turn in range(turns)),
        keep_rate=ratio((before_NT & after_NT).sum(1), before_NT.sum(1)),
        fix_rate=ratio((~before_NT & after_NT).sum(1), wrong_N),
        repeat_rate=ratio((~before_NT & same_NT).sum(1), wrong_N),
        majority_turns=mean([majority(row) for row in whole]),
        any_turn=mean([any(answer.success for answer in row) for row in whole]),
        pass_k=mean([any(answer.success for answer in task) for task in firsts]),
        majority_k=mean([majority(task) for task in firsts]),
        blind_fix=_blind(firsts, False),
        blind_keep=_blind(firsts, True),
        responses=responses,
    )


def _blind(firsts: Sequence[Sequence[Try]], right: bool) -> Figure:
    """How often, of two independent first answers of one task, the second is right where the first is (or is not)
    `right`: over all ordered pairs."""
    of_N = np.array([sum(answer.success is right for answer in task) for task in firsts], int)
    k_N = np.array([len(task) for task in firsts], int)
    others_N = of_N - 1 if right else k_N - of_N
    return ratio(of_N * others_N, of_N * (k_N - 1))


def answers(episode: Episode, turns: int) -> list[Try]:
    """Its answers at all turns. Those for which there was no room are wrong; where the rollout or the environment ended
    the episode, its last answer stands."""
    given = list(episode.tries[:turns])
    stands = MISSING if episode.too_long or not given else given[-1]
    return given + [stands] * (turns - len(given))


def majority(given: Sequence[Try]) -> bool:
    """Whether the most common answer is right; the first of equally common ones. Unparsable answers have no vote."""
    votes = Counter(answer.answer for answer in given if answer.answer is not None)
    if not votes:
        return False
    chosen = votes.most_common(1)[0][0]  # Counter keeps the order of first occurrence among equals
    return next(answer.success for answer in given if answer.answer == chosen)


def _same(answer: Try, following: Try) -> bool:
    return answer.answer is not None and answer.answer == following.answer


# Actions -------------------------------------------------------------------------------------------------------------


def of_actions(
    played: Sequence[Episode], responses: Responses, together: Sequence[Sequence[Episode]] | None = None
) -> ActionFigures:
    """The figures of one episode a task; with `together` also that of all episodes of each."""
    success_N = np.array([episode.success for episode in played], bool)
    refused_N = np.array([any(action.refused for action in episode.tries) for episode in played], bool)
    loops_N = [loops([action.answer for action in episode.tries]) for episode in played]
    return ActionFigures(
        success=mean(success_N),
        success_after_error=ratio(success_N & refused_N, refused_N),
        error_share=mean(refused_N),
        loop_rate=mean([bool(found) for found in loops_N]),
        actions=mean([len(episode.tries) for episode in played], share=False),
        pass_k=mean([any(episode.success for episode in task) for task in together or []]),
        loops={str(length): mean([found[length] for found in loops_N], share=False) for length in LOOPS},
        responses=responses,
    )


def loops(actions: Sequence[str | bytes | None]) -> Counter[int]:
    """How many loops these actions hold, by length. A loop of length L >= 1 is a longest stretch in which the same L
    actions stand twice in a row or more (Agent-R, arXiv 2501.11425, counts repeated action sequences).

    A stretch counts once, under its smallest L: x x x x is one loop of length 1, and none of length 2.
    """
    found: Counter[int] = Counter()
    for length in range(1, len(actions) // 2 + 1):
        start = 0
        for equal, stretch in groupby(a == b for a, b in zip(actions, actions[length:], strict=False)):
            size = len(list(stretch))
            if equal and size >= length and not _repeats(actions[start : start + length]):
                found[length] += 1
            start += size
    return found


def _repeats(block: Sequence) -> bool:
    """Whether the block is itself a shorter one, repeated."""
    size = len(block)
    return any(size % part == 0 and block[part:] == block[:-part] for part in range(1, size))


# Means ---------------------------------------------------------------------------------------------------------------


def mean(values_N: Sequence[float] | np.ndarray, share: bool = True) -> Figure:
    return ratio(np.asarray(values_N), np.ones(len(values_N)), share)


def ratio(over_N: np.ndarray, under_N: np.ndarray, share: bool = True) -> Figure:
    """sum(over) / sum(under) over tasks, and its standard error where tasks are independent, their turns not.

    The linearised variance of a ratio of totals (Cochran, Sampling Techniques, 6.3); with `under` all 1 it is the
    usual standard error of a mean. Where all tasks agree, that is 0, whatever their number: the error of a `share` is
    then the reach of Wilson's interval (`wilson_reach`), with the tasks that have a part in it as its observations. A
    ratio over nothing is None.
    """
    n, total = len(under_N), float(under_N.sum())
    if total == 0:
        return NOTHING
    value = float(over_N.sum()) / total
    if n < 2:
        return Figure(value)
    residuals_N = over_N - value * under_N
    error = math.sqrt(float((residuals_N**2).sum()) * n / (n - 1)) / total
    if share and math.isclose(error, 0.0, abs_tol=1e-12):
        error = wilson_reach(value, int(np.count_nonzero(under_N)))
    return Figure(value, error)


def wilson_reach(share: float, n: int) -> float:
    """How far Wilson's score interval (1927) of one standard error goes from a share of n independent observations, at
    its farther side: 1 / (n + 1) where none or all have it, about as much as where one has."""
    middle = (share + 1 / (2 * n)) / (1 + 1 / n)
    half = math.sqrt(share * (1 - share) / n + 1 / (4 * n * n)) / (1 + 1 / n)
    return abs(middle - share) + half
