"""Evaluation: which passes are played over test tasks, and the summary of what was played.

What the figures are, and what others call them, is in protocols/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from actors.config import Feedback, SamplingSettings
from learner.batches.responses import responses_of
from protocols.evaluation import EnvironmentFigures, EvaluationSummary, Kind, PassFigures
from protocols.turns import Turn
from redraft.config import EvaluationSettings
from redraft.evaluation.episodes import Episode, episodes, generations, of_actions, of_answers

if TYPE_CHECKING:
    from actors.rollout_config import Rollout

UNPLAYED = Episode(())


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
        passes.append(Pass("greedy", whole, sampling.greedy()))
    controls = {label: control.tested(settings.turns, episodes=1) for label, control in rollout.controls().items()}
    passes += [Pass(label, control, sampling) for label, control in controls.items() if control != whole]
    return passes + [Pass(f"{kind} feedback", whole, sampling, kind) for kind in settings.feedbacks]


def summarise(
    played: Mapping[str, Sequence[Sequence[Turn]]], turns: int, kind: Kind = "answers", labels: Sequence[str] = ()
) -> EvaluationSummary:
    """The figures of one evaluation. `played` maps the labels of `plays` to the turns of each task; `labels` are those
    of the environments that the tasks are from, in a run of several.

    Standard errors take each task as one cluster; see episodes.ratio. An evaluation without independent tries has k = 1
    of them: the sampled episode. A task whose episode broke off is left out of the figures of that pass, and of those
    over k tries where one of them did.
    """
    found = {label: [episodes(task, kind) for task in tasks] for label, tasks in played.items()}
    sampled = _one_each(found["sampled"])
    others = found.get("independent", [[]] * len(sampled))
    together = [[own, *rest] for own, rest in zip(sampled, others, strict=True)]
    apart = {
        label: _figures(_one_each(tasks), turns, kind, played[label])
        for label, tasks in found.items()
        if label not in ("sampled", "independent")
    }
    mixed = sorted({label for label in labels if label})
    return EvaluationSummary(
        n=len(sampled),
        turns=turns,
        k=len(together[0]),
        sampled=_figures(sampled, turns, kind, played["sampled"], together),
        errors=sum(episode.broken for tasks in found.values() for task in tasks for episode in task),
        generations={label: sum(map(generations, tasks)) for label, tasks in played.items()},
        greedy=apart.pop("greedy", None),
        controls=apart,
        environments={
            label: _environment([n for n, other in enumerate(labels) if other == label], together, played, turns, kind)
            for label in mixed
        },
    )


def _environment(
    own: Sequence[int],
    together: Sequence[Sequence[Episode]],
    played: Mapping[str, Sequence[Sequence[Turn]]],
    turns: int,
    kind: Kind,
) -> EnvironmentFigures:
    """Figures of the tasks at these places."""
    tries = [together[n] for n in own]
    sampled = [first for first, *_ in tries]
    figures = _figures(sampled, turns, kind, [played["sampled"][n] for n in own], tries)
    return EnvironmentFigures(len(own), sum(episode.broken for episode in sampled), figures)


def _one_each(tasks: Sequence[Sequence[Episode]]) -> list[Episode]:
    return [task[0] if task else UNPLAYED for task in tasks]


def _figures(
    played: Sequence[Episode],
    turns: int,
    kind: Kind,
    tasks: Sequence[Sequence[Turn]],
    together: Sequence[Sequence[Episode]] | None = None,
) -> PassFigures:
    responses = responses_of(turn for task in tasks for turn in task)
    played = [episode for episode in played if not episode.broken]
    if together is not None:
        together = [task for task in together if not any(episode.broken for episode in task)]
    if kind == "actions":
        return of_actions(played, responses, together)
    return of_answers(played, turns, responses, together)
