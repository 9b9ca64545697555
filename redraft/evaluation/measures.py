"""Evaluation: which passes are played over test tasks, and the summary of what was played.

The measures of answers are those of RISE (arXiv 2407.18219): m1@t1 is the accuracy of the first answer; mk@t1 the
majority of k independent first answers; m1@tT the majority over the T answers of one episode; p1@tT whether any of
those is right (an oracle); pk@t1 whether any of k independent first answers is right, the control with equally many
answers. Their keys are written for k = T = 5 (`m5_t1`, `p1_t5`), whatever k and T are; `independent` and `turns` say
what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from actors.config import Feedback, SamplingSettings
from learner.batches.responses import responses_of
from protocols.turns import Turn
from redraft.config import EvaluationSettings
from redraft.evaluation.episodes import (
    Episode,
    Figure,
    Figures,
    Kind,
    episodes,
    generations,
    of_actions,
    of_answers,
    of_firsts,
    of_successes,
)

if TYPE_CHECKING:
    from actors.rollout_config import Rollout

NOTHING = Episode(())


class Pass(NamedTuple):
    """One way to play all test tasks: how episodes are played, how tokens are drawn, and what the environment says
    (None: as in the recipe)."""

    label: str
    rollout: Rollout
    sampling: SamplingSettings
    feedback: Feedback | None = None


def plays(settings: EvaluationSettings, rollout: Rollout, sampling: SamplingSettings) -> list[Pass]:
    """The passes over all test tasks. None stops at success.

    "sampled" is one whole episode a task at the recipe's temperature; "independent" the other first answers, or the
    other whole episodes of many actions, since the sampled episode is already one of them; "greedy" one whole episode
    at temperature 0. Any other is a control that the rollout or `settings.feedbacks` names, played like "sampled".
    """
    whole = rollout.tested(turns=settings.turns, episodes=1)
    passes = [Pass("sampled", whole, sampling)]
    if settings.independent > 1:
        turns = 1 if whole.kind == "answers" else settings.turns
        passes.append(Pass("independent", rollout.tested(turns=turns, episodes=settings.independent - 1), sampling))
    if settings.greedy:
        passes.append(Pass("greedy", whole, sampling.model_copy(update={"temperature": 0.0})))
    controls = {label: control.tested(settings.turns, episodes=1) for label, control in rollout.controls().items()}
    passes += [Pass(label, control, sampling) for label, control in controls.items() if control != whole]
    return passes + [Pass(f"{kind} feedback", whole, sampling, kind) for kind in settings.feedbacks]


def summarise(played: Mapping[str, Sequence[Sequence[Turn]]], turns: int, kind: Kind = "answers") -> dict:
    """The figures of one evaluation, ready for JSON. `played` maps the labels of `plays` to the turns of each task.

    Of both kinds: kind, n, turns, independent, errors (episodes of all passes that an error ended), generations (the
    sampled responses of each pass, so that methods can be compared at equal numbers of them), `se` with the standard
    errors of all figures, `greedy` with the figures of the greedy pass (None where it was not played), and `controls`
    with those of each control. A figure over nothing is None. Standard errors take each task as one cluster; see
    episodes.ratio. Of the sampled, the greedy and the control passes also cut_share, unparsed_share and
    response_tokens, by role; see learner.batches.responses.

    Answers: accuracy_by_turn[turns], keep_rate (right and right again, over right), fix_rate (wrong then right, over
    wrong; with 2 turns it is the success of the second try given a failed first), repeat_rate (the same wrong answer
    again, over wrong), m1_t1, m5_t1, m1_t5, p1_t5, p5_t1. Answers that an error kept from being given count as wrong.

    Actions: success (share of episodes whose last action has it), success_after_error (the same among episodes in which
    an action was refused), error_share (episodes with a refused action), actions (mean number an episode), loop_rate
    (episodes with a loop), loops {"1", "2", "3": loops of that length an episode, see episodes.loops}, p5_success (any
    of `independent` whole episodes succeeds: the control with as many generations).
    """
    found = {label: [episodes(task, kind) for task in tasks] for label, tasks in played.items()}
    sampled = _one_each(found["sampled"])
    others = found.get("independent", [[]] * len(sampled))
    together = [[own, *rest] for own, rest in zip(sampled, others, strict=True)]
    figures = _figures(sampled, turns, kind) | (of_firsts if kind == "answers" else of_successes)(together)
    apart = {
        label: split(_figures(_one_each(tasks), turns, kind)) | _responses(played[label])
        for label, tasks in found.items()
        if label not in ("sampled", "independent")
    }
    return {
        "kind": kind,
        "n": len(sampled),
        "turns": turns,
        "independent": len(together[0]),
        **split(figures),
        **_responses(played["sampled"]),
        "errors": sum(episode.failed for tasks in found.values() for task in tasks for episode in task),
        "generations": {label: sum(map(generations, tasks)) for label, tasks in played.items()},
        "greedy": apart.pop("greedy", None),
        "controls": apart,
    }


def _responses(tasks: Sequence[Sequence[Turn]]) -> dict[str, dict]:
    return responses_of(turn for turns in tasks for turn in turns).to_json()


def _one_each(tasks: Sequence[Sequence[Episode]]) -> list[Episode]:
    return [task[0] if task else NOTHING for task in tasks]


def _figures(played: Sequence[Episode], turns: int, kind: Kind) -> Figures:
    return of_answers(played, turns) if kind == "answers" else of_actions(played)


def split(figures: Figures) -> dict:
    """Values under their own keys, standard errors under the same keys in `se`."""
    return {key: _part(figure, 0) for key, figure in figures.items()} | {
        "se": {key: _part(figure, 1) for key, figure in figures.items()}
    }


def _part(figure: Figure | list[Figure] | dict[str, Figure], part: int):
    if isinstance(figure, list):
        return [one[part] for one in figure]
    if isinstance(figure, dict):
        return {key: one[part] for key, one in figure.items()}
    return figure[part]
