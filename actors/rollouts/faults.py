"""Which action of a failed episode went wrong, and what the failure has shown: said by the model itself, or by the
environment."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.action_config import HISTORY, RollbackSettings
from actors.door import EpisodeFailure, Outcome
from actors.environment_pool import Playing
from actors.environments.base import Played
from actors.messages import Question, asked
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from actors.rollouts.tree import worth
from protocols.turns import Role


@dataclass(frozen=True, slots=True)
class Step:
    """One action: the dialogue `before` it and the environment's `state` there, int32 `ids`, what came of it."""

    before: Dialogue
    state: Any
    ids: np.ndarray
    text: str
    outcome: Outcome
    observation: Question


Fault = tuple[int, str]
"""The number of the action that went wrong, from 0, and what is to be done instead."""


async def of_environment(
    stage: Stage[RollbackSettings], environment: Playing, question: Question, steps: Sequence[Step]
) -> Fault | None:
    """The first action that the environment refused, and its lesson of the episode; None where it has neither."""
    wrong = next((number for number, step in enumerate(steps) if step.outcome.refused), None)
    if wrong is None:
        return None
    shown = tuple((step.text, asked(step.observation)) for step in steps)
    found = await environment.lesson(stage.task, [Played(shown, worth(steps[-1].outcome), False)])
    return (wrong, "\n".join(found)) if found else None


async def of_model(
    stage: Stage[RollbackSettings], environment: Playing, question: Question, steps: Sequence[Step]
) -> Fault | None:
    """The action whose number the model says first, and all that it says; None where that is no action's number, or
    where the episode leaves no room to ask."""
    lines = [f"{number}. {step.text}\n{asked(step.observation)}" for number, step in enumerate(steps, 1)]
    prompt = stage.settings.reflect_prompt.replace(HISTORY, "\n".join([asked(question), *lines]))
    sampling = stage.sampling.model_copy(update={"max_tokens": stage.settings.reflect_tokens})
    try:
        completion = await stage.generate(stage.renderer.first(prompt), Role.REFLECTION, sampling)
    except EpisodeFailure as failure:
        stage.failed(failure)
        return None
    advice = stage.renderer.text(completion.ids)
    said = re.search(r"\d+", advice)
    wrong = int(said.group()) - 1 if said else -1
    return (wrong, advice) if 0 <= wrong < len(steps) else None


JUDGES: dict[str, Callable[[Stage, Playing, Question, Sequence[Step]], Awaitable[Fault | None]]] = {
    "actor": of_model,
    "environment": of_environment,
}
