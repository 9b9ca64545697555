"""hint: an answer; where it is wrong, one more that is told the right one, and kept without the hint (STaR).

A hinted answer that is right becomes a turn on a root of its own, as if it had followed the question: its log-probs
were sampled after other tokens and are not kept (arXiv 2203.14465).
"""

from __future__ import annotations

from actors.environment_pool import Playing
from actors.messages import asked
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from protocols.turns import Role


async def play(stage: Stage) -> None:
    await stage.each_episode(_episode)


async def _episode(stage: Stage, environment: Playing, number: int) -> None:
    question = environment.observation
    dialogue = Dialogue(stage, question, number)
    outcome = await environment.step(await dialogue.say(Role.ATTEMPT))
    hint = None if outcome.success else await environment.hint()
    dialogue.score(0, outcome)
    if hint is None or outcome.over:
        return
    dialogue.hear(asked(environment.observation) + hint)
    outcome = await environment.step(await dialogue.say(Role.RETRY))
    if outcome.success:
        kept = Dialogue(stage, question, number)
        kept.repeat(Role.RETRY, dialogue.last.completion.ids)
        kept.score(1, outcome)
