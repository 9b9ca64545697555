"""attempt: one answer, scored."""

from __future__ import annotations

from actors.environment_pool import Playing
from actors.rollouts import Stage
from actors.rollouts.dialogue import begin
from protocols.turns import Role


async def play(stage: Stage) -> None:
    await stage.each_episode(_episode)


async def _episode(stage: Stage, environment: Playing, number: int) -> None:
    dialogue = await begin(stage, environment.observation, number)
    text = await dialogue.say(Role.ATTEMPT)
    dialogue.score(0, await environment.step(text))
