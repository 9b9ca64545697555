"""reflect: one answer that failed, then several reflections on it, each with its retry (arXiv 2505.24726).

The failed answer is the same for all: the one that the task brings along (a dataset of failures), or the first wrong
one of `tries`. Where none is wrong, the group has only that answer, unless `solved` asks for reflections on it too.

    turn 0 ATTEMPT -> REFLECTION -> RETRY     episode 0
                  `-> REFLECTION -> RETRY     episode 1, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from actors.door import Outcome
from actors.environment_pool import Playing
from actors.messages import asked
from actors.rollout_config import ReflectSettings
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue, begin
from protocols.turns import TOKENS, Role


@dataclass(frozen=True, slots=True)
class First:
    """The answer that is reflected on, and the environment after it."""

    dialogue: Dialogue
    outcome: Outcome
    state: Any
    observation: str


async def play(stage: Stage[ReflectSettings]) -> None:
    first = await stage.episode(0, partial(_first, stage))
    compared = stage.group.compared = []
    if first is None or first.outcome.over:  # nothing can be tried again
        return
    if stage.settings.solved or not first.outcome.success:
        await stage.each_episode(partial(_retry, first, compared))


async def _first(stage: Stage[ReflectSettings], environment: Playing) -> First:
    start = await environment.snapshot()
    question = environment.observation
    for attempt in range(stage.settings.tries):
        if attempt:
            await environment.restore(start)
        if "attempt" in stage.task:
            dialogue = Dialogue(stage, question)
            text = dialogue.repeat(Role.ATTEMPT, np.array(stage.task["attempt"], TOKENS))
        else:
            dialogue = await begin(stage, question)
            text = await dialogue.say(Role.ATTEMPT)
        outcome = await environment.step(text)
        if not outcome.success or "attempt" in stage.task:
            break
    dialogue.score(0, outcome)
    return First(dialogue, outcome, await environment.snapshot(), asked(environment.observation))


async def _retry(
    first: First, compared: list[float], stage: Stage[ReflectSettings], environment: Playing, number: int
) -> None:
    settings = stage.settings
    await environment.restore(first.state)
    dialogue = first.dialogue.branch(number)
    dialogue.hear(first.observation + settings.reflect_prompt)
    await dialogue.say(Role.REFLECTION)
    dialogue.hear(settings.retry_prompt)
    outcome = await environment.step(await dialogue.say(Role.RETRY))
    dialogue.score(1, outcome)
    compared.append(outcome.reward)
