"""attempt: one answer, scored."""

from __future__ import annotations

from actors.play import Playing
from actors.rollouts import Dialogue, Stage
from protocols.turns import Role


async def play(stage: Stage, environment: Playing) -> None:
    dialogue = Dialogue(stage, environment.observation)
    text = await dialogue.say(Role.ATTEMPT)
    dialogue.score(0, await environment.step(text))
