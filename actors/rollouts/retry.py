"""retry: answer, hear what the environment says, answer again; with `reflect`, a reflection before each retry."""

from __future__ import annotations

from actors.play import Playing
from actors.rollouts import Dialogue, Stage
from protocols.turns import Role


async def play(stage: Stage, environment: Playing) -> None:
    settings = stage.settings
    dialogue = Dialogue(stage, environment.observation)
    for index in range(settings.turns):
        if index and settings.reflect:
            dialogue.hear(environment.observation + settings.reflect_prompt)
            await dialogue.say(Role.REFLECTION)
            dialogue.hear(settings.retry_prompt)
        elif index:
            dialogue.hear(environment.observation)
        text = await dialogue.say(Role.ATTEMPT)
        outcome = await environment.step(text)
        dialogue.score(index, outcome)
        if outcome.terminated or (outcome.success and settings.stop_at_success):
            return
