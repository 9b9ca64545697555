"""Evaluation: which passes are played over test tasks, and what their turns say about answers that are tried again.

The measures are those of RISE (arXiv 2407.18219): m1@t1 is the accuracy of the first answer; mk@t1 the majority of k
independent first answers; m1@tT the majority over the T answers of one episode; p1@tT whether any of those is right
(an oracle); pk@t1 whether any of k independent first answers is right, the control with equally many answers. Their
keys are written for k = T = 5 (`m5_t1`, `p1_t5`), whatever k and T are; `independent` and `turns` say what they were.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from actors.config import RolloutSettings, SamplingSettings
from protocols.settings import Settings
from protocols.turns import Role, Turn

if TYPE_CHECKING:
    from rich.table import Table

ANSWERS = (Role.ATTEMPT, Role.RETRY)
WITH_FEEDBACK = (
    "The environment's feedback says whether an answer is right: "
    "this is improvement with feedback, not intrinsic self-correction."
)


class EvaluationSettings(Settings):
    """How a run is measured before, during and after training."""

    n: int = Field(500, ge=1)
    """Test tasks."""
    independent: int = Field(5, ge=1)
    """First answers of a task that m5@t1 and p5@t1 look at."""
    greedy: bool = True
    """Also play every task once at temperature 0."""
    turns: int | None = Field(None, ge=1)
    """Answers in an episode (None = as in rollout)."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer. `stands`: the environment ended the episode with it, so it also counts for the turns not played."""

    success: bool
    answer: str | None
    stands: bool = False


WIDE = 110  # columns of a terminal
MISSING = Attempt(False, None)


def plays(
    settings: EvaluationSettings, rollout: RolloutSettings, sampling: SamplingSettings
) -> list[tuple[str, RolloutSettings, SamplingSettings]]:
    """The passes over all test tasks: (label, how episodes are played, how tokens are drawn). None stops at success.

    "sampled" is one whole episode a task at the recipe's temperature; "independent" the other first answers, since the
    episode's first one is already one of them; "greedy" one whole episode at temperature 0.
    """
    turns = settings.turns or rollout.turns
    whole = _rollout(rollout, turns, episodes=1)
    passes = [("sampled", whole, sampling)]
    if settings.independent > 1:
        passes.append(("independent", _rollout(rollout, 1, episodes=settings.independent - 1), sampling))
    if settings.greedy:
        passes.append(("greedy", whole, sampling.model_copy(update={"temperature": 0.0})))
    return passes


def _rollout(rollout: RolloutSettings, turns: int, episodes: int) -> RolloutSettings:
    changes = {"turns": turns, "episodes": episodes, "stop_at_success": False}
    changes |= {"name": "retry"} if turns > 1 else {"name": "attempt", "reflect": False}
    return RolloutSettings.model_validate(rollout.model_dump() | changes)


def attempts(turns: Sequence[Turn]) -> list[list[Attempt]]:
    """The answers of each episode of one task, in the order in which they were given.

    A turn of role error ends its episode, so that episode has fewer answers than the others, or none.
    """
    episodes: dict[int, list[Attempt]] = {}
    for turn in sorted(turns, key=lambda turn: turn.turn):
        episode = episodes.setdefault(turn.episode, [])
        if turn.role in ANSWERS:
            success = bool(turn.extra.get("success", False))
            episode.append(Attempt(success, turn.extra.get("answer"), turn.terminated))
    return [episodes[number] for number in sorted(episodes)]


def summarise(played: Mapping[str, Sequence[Sequence[Turn]]], turns: int) -> dict:
    """The figures of one evaluation, ready for JSON. `played` maps the labels of `plays` to the turns of each task.

    Keys: n, turns, independent, accuracy_by_turn[turns], keep_rate (right and right again, over right), fix_rate (wrong
    then right, over wrong), repeat_rate (the same wrong answer again, over wrong), m1_t1, m5_t1, m1_t5, p1_t5, p5_t1,
    errors (episodes that ended early), `se` with the standard errors of all these figures, and `greedy` with the same
    for the greedy pass (None where it was not played). A figure over nothing is None. Answers that an error kept from
    being given count as wrong. Standard errors take each task as one cluster (ratio estimator, linearised).
    """
    sampled = [attempts(task)[0] for task in played["sampled"]]
    others = [attempts(task) for task in played.get("independent", [[]] * len(sampled))]
    firsts = [_first_answers(own, rest) for own, rest in zip(sampled, others, strict=True)]
    figures = _of_episodes(sampled, turns) | _of_firsts(firsts)
    greedy = [attempts(task)[0] for task in played["greedy"]] if "greedy" in played else None
    episodes = sampled + (greedy or [])
    return {
        "n": len(sampled),
        "turns": turns,
        "independent": len(firsts[0]),
        **_split(figures),
        "errors": sum(len(_whole(e, turns)[1]) > 0 for e in episodes) + sum(not e for rest in others for e in rest),
        "greedy": None if greedy is None else _split(_of_episodes(greedy, turns)),
    }


def majority(answers: Sequence[Attempt]) -> bool:
    """Whether the most common answer is right; the first of equally common ones. Unparsable answers have no vote."""
    votes = Counter(attempt.answer for attempt in answers if attempt.answer is not None)
    if not votes:
        return False
    chosen = votes.most_common(1)[0][0]  # Counter keeps the order of first occurrence among equals
    return next(attempt.success for attempt in answers if attempt.answer == chosen)


def _whole(episode: Sequence[Attempt], turns: int) -> tuple[list[Attempt], list[Attempt]]:
    """The episode's answers, those that are missing filled in, and which of these an error kept from being given."""
    played, missing = list(episode[:turns]), turns - len(episode)
    if missing > 0 and played and played[-1].stands:
        return played + [played[-1]] * missing, []
    return played + [MISSING] * missing, [MISSING] * missing


def _first_answers(own: Sequence[Attempt], rest: Sequence[Sequence[Attempt]]) -> list[Attempt]:
    return [episode[0] if episode else MISSING for episode in (own, *rest)]


Figures = dict[str, tuple[float | None, float | None] | list[tuple[float | None, float | None]]]


def _of_episodes(episodes: Sequence[Sequence[Attempt]], turns: int) -> Figures:
    whole = [_whole(episode, turns)[0] for episode in episodes]
    right_NT = np.array([[attempt.success for attempt in episode] for episode in whole])
    same_NT = np.array([[_same(*pair) for pair in pairwise(episode)] for episode in whole], bool)
    before_NT, after_NT = right_NT[:, :-1], right_NT[:, 1:]
    wrong_N = (~before_NT).sum(1)
    by_turn = [_mean(right_NT[:, turn]) for turn in range(turns)]
    return {
        "accuracy_by_turn": by_turn,
        "keep_rate": _ratio((before_NT & after_NT).sum(1), before_NT.sum(1)),
        "fix_rate": _ratio((~before_NT & after_NT).sum(1), wrong_N),
        "repeat_rate": _ratio((~before_NT & same_NT).sum(1), wrong_N),
        "m1_t1": by_turn[0],
        "m1_t5": _mean([majority(episode) for episode in whole]),
        "p1_t5": _mean(right_NT.any(1)),
    }


def _same(answer: Attempt, following: Attempt) -> bool:
    return answer.answer is not None and answer.answer == following.answer


def _of_firsts(firsts: Sequence[Sequence[Attempt]]) -> Figures:
    return {
        "m5_t1": _mean([majority(answers) for answers in firsts]),
        "p5_t1": _mean([any(attempt.success for attempt in answers) for answers in firsts]),
    }


def _mean(values_N: Sequence[float] | np.ndarray) -> tuple[float | None, float | None]:
    return _ratio(np.asarray(values_N), np.ones(len(values_N)))


def _ratio(over_N: np.ndarray, under_N: np.ndarray) -> tuple[float | None, float | None]:
    """sum(over) / sum(under) over tasks, and its standard error where tasks are independent, their turns not.

    The linearised variance of a ratio of totals (Cochran, Sampling Techniques, 6.3); with `under` all 1 it is the
    usual standard error of a mean.
    """
    n, total = len(under_N), float(under_N.sum())
    if total == 0:
        return None, None
    value = float(over_N.sum()) / total
    if n < 2:
        return value, None
    residuals_N = over_N - value * under_N
    return value, math.sqrt(float((residuals_N**2).sum()) * n / (n - 1)) / total


def _split(figures: Figures) -> dict:
    """Values under their own keys, standard errors under the same keys in `se`."""
    values, errors = {}, {}
    for key, figure in figures.items():
        listed = isinstance(figure, list)
        values[key] = [value for value, _ in figure] if listed else figure[0]
        errors[key] = [error for _, error in figure] if listed else figure[1]
    return values | {"se": errors}


# For people ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of results: (value, standard error) before and after, each possibly None."""

    label: str
    meaning: str
    before: tuple[float | None, float | None]
    after: tuple[float | None, float | None]
    section: str = "sampled"

    @property
    def change(self) -> tuple[float | None, float | None]:
        """After minus before. Its error takes the two as independent: cautious, since they share their tasks."""
        (old, old_se), (new, new_se) = self.before, self.after
        if old is None or new is None:
            return None, None
        return new - old, None if old_se is None or new_se is None else math.hypot(old_se, new_se)


def rows(before: dict | None, after: dict | None) -> list[Row]:
    """What the table of results shows, of either or both evaluations."""
    known = before or after
    if known is None:
        return []
    turns, k = known["turns"], known["independent"]
    found = [_row(before, after, *described) for described in _described(turns, k)]
    if any(summary and summary.get("greedy") for summary in (before, after)):
        pair = [summary.get("greedy") if summary else None for summary in (before, after)]
        found += [_row(*pair, *described, "greedy") for described in _described(turns, k)]
    return [row for row in found if row.before[0] is not None or row.after[0] is not None]


def _described(turns: int, k: int) -> list[tuple[str, str, str, int | None]]:
    """(key, label, meaning, turn) of every figure, in the order in which people read them."""
    by_turn = [("accuracy_by_turn", f"turn {t + 1}", "right at this turn", t) for t in range(turns)]
    by_turn[0] = ("accuracy_by_turn", "turn 1 (m1@t1)", "right at the first answer", 0)
    retried = [
        ("keep_rate", "keep rate", "right, and right again at the next turn", None),
        ("fix_rate", "fix rate", "wrong, and right at the next turn", None),
        ("repeat_rate", "repeat rate", "wrong, and the same wrong answer again", None),
        ("m1_t5", f"m1@t{turns}", f"majority of the {turns} turns of one episode", None),
        ("p1_t5", f"p1@t{turns}", f"any of the {turns} turns of one episode is right", None),
    ]
    independent = [
        ("p5_t1", f"p{k}@t1", f"any of {k} independent first answers is right", None),
        ("m5_t1", f"m{k}@t1", f"majority of {k} independent first answers", None),
    ]
    return by_turn + (retried if turns > 1 else []) + (independent if k > 1 else [])


def _row(before: dict | None, after: dict | None, key: str, label: str, meaning: str, turn, section="sampled") -> Row:
    return Row(label, meaning, _figure(before, key, turn), _figure(after, key, turn), section)


def _figure(summary: dict | None, key: str, turn: int | None) -> tuple[float | None, float | None]:
    if not summary or summary.get(key) is None:
        return None, None
    value, error = summary[key], summary["se"][key]
    return (value, error) if turn is None else (value[turn], error[turn])


def remarks(before: dict | None, after: dict | None, feedback: str) -> list[str]:
    """What an honest reader has to be told beside the figures. `feedback` as in environment.feedback."""
    found = []
    known = after or before
    if known and known["turns"] > 1 and feedback != "blank":
        found.append(WITH_FEEDBACK)
    if before and after and after["turns"] > 1 and before["independent"] > 1:
        turns, k = after["turns"], before["independent"]
        cost = "with equally many answers" if k == turns else f"with {k} answers instead of {turns}"
        found.append(
            f"p1@t{turns} after training is {after['p1_t5']:.3f}; {k} independent answers of the model before training "
            f"(its p{k}@t1) reach {before['p5_t1']:.3f} {cost}."
        )
    if errors := sum(summary["errors"] for summary in (before, after) if summary):
        found.append(f"{errors} episodes ended early with an error; the answers that they lack count as wrong.")
    return found


def shown(figure: tuple[float | None, float | None], sign: str = "") -> str:
    """ "0.512 ± 0.022", or "-" where there is nothing to show."""
    value, error = figure
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def table(before: dict | None, after: dict | None, feedback: str, width: int = 120) -> Table:
    """The results for the terminal: each figure before and after with its standard error, and the change.

    What a figure means is said where the terminal is wide enough.
    """
    from rich import box
    from rich.table import Table

    known = before or after or {"n": 0}
    both = before is not None and after is not None
    caption = "\n".join(remarks(before, after, feedback))
    title = f"{known['n']} test tasks, ± standard error"
    drawn = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("", no_wrap=True)
    for header, wanted in (("before", before), ("after", after), ("change", both)):
        if wanted:
            drawn.add_column(header if both or header == "change" else "result", justify="right", no_wrap=True)
    explained = width >= WIDE
    if explained:
        drawn.add_column("meaning", style="dim")
    section = "sampled"
    for row in rows(before, after):
        if row.section != section:
            drawn.add_section()
            section = row.section
        figures = [shown(row.before)] * (before is not None) + [shown(row.after)] * (after is not None)
        change = [shown(row.change, "+")] * both
        meaning = row.meaning if section == "sampled" else "as above, at temperature 0"
        label = row.label if section == "sampled" else f"greedy {row.label}"
        drawn.add_row(label, *figures, *change, *[meaning] * explained)
    return drawn
