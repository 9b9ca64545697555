"""verify: answer, say whether that is right, and answer again only where the verdict is wrong (PAG, arXiv 2506.10406).

The environment's feedback is not told. A verification has the turn number of the answer that it judges, and the reward
1 where its verdict is right, else 0.

    turn 0 ATTEMPT -> VERIFICATION "wrong" -> ATTEMPT      an answer that is said to be right stands
"""

from __future__ import annotations

import re
from dataclasses import replace

from actors.environment_pool import Playing
from actors.rollout_config import VerifySettings
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from protocols.turns import Role


async def play(stage: Stage[VerifySettings]) -> None:
    await stage.each_episode(_episode)


async def _episode(stage: Stage[VerifySettings], environment: Playing, number: int) -> None:
    settings = stage.settings
    dialogue = Dialogue(stage, environment.observation, number)
    for index in range(settings.turns):
        if index:
            dialogue.hear(settings.revise_prompt)
        outcome = await environment.step(await dialogue.say(Role.ATTEMPT))
        last = index + 1 == settings.turns
        dialogue.score(index, outcome, ended=last)
        if outcome.over or last:
            return
        dialogue.hear(settings.verify_prompt)
        stands = re.search(settings.right, (await dialogue.say(Role.VERIFICATION)).strip()) is not None
        agrees = stands == outcome.success
        verdict = replace(
            outcome, reward=float(agrees), success=agrees, answer=None, refused=False, parsed=None, score=None
        )
        dialogue.score(index, replace(verdict, parts={}, good=None, seconds=0.0), ended=stands)
        if stands:
            return
