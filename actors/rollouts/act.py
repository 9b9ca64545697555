"""act: actions in an environment until it ends the episode, or `turns` of them."""

from __future__ import annotations

from actors.environment_pool import Playing
from actors.rollout_config import ActSettings
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from protocols.turns import Role


async def play(stage: Stage[ActSettings]) -> None:
    await stage.each_episode(_episode)


async def _episode(stage: Stage[ActSettings], environment: Playing, number: int) -> None:
    dialogue = Dialogue(stage, environment.observation, number, tools=environment.tools)
    for index in range(stage.settings.turns):
        if index:
            dialogue.hear(environment.observation)
        text = await dialogue.say(Role.ACTION)
        outcome = await environment.step(text)
        dialogue.score(index, outcome, ended=index + 1 == stage.settings.turns)
        if outcome.over:
            return
