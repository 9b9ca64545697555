"""retry: answer, hear what the environment says, answer again; with `reflect`, a reflection before each retry.

The last turn may be the best of several samples, or written by a teacher (RISE, arXiv 2407.18219). With `internalise`
the first right answer after wrong ones becomes a turn on a root of its own, too, as if it had followed the question
(arXiv 2602.13949):

    turn 0 ATTEMPT, wrong -> REFLECTION -> ATTEMPT, right      and      RETRY: the same tokens, after the question alone
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from actors.door import Outcome
from actors.environment_pool import Playing
from actors.messages import Question, asked
from actors.rollout_config import RetrySettings
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue, begin
from protocols.turns import INTERNALISED, Role


async def play(stage: Stage[RetrySettings]) -> None:
    await stage.each_episode(_episode)


async def _episode(stage: Stage[RetrySettings], environment: Playing, number: int) -> None:
    settings, question, solved = stage.settings, environment.observation, False
    dialogue, previous = await begin(stage, question, number, settings.context), None
    for index in range(settings.turns):
        last = index + 1 == settings.turns
        rate = None
        if last and settings.best_of > 1:
            dialogue, outcome, rate = await _best(stage, dialogue, environment)
        else:
            text = await _answer(
                stage, dialogue, environment, retried=index > 0, taught=last and settings.teacher is not None
            )
            outcome = await environment.step(text)
        repeated = not outcome.success and outcome.answer is not None and outcome.answer == previous
        ended = (outcome.success and settings.stop_at_success) or (repeated and settings.stop_at_repeat)
        dialogue.score(index, outcome, ended)
        if settings.internalise and index and outcome.success and not solved:
            _internalise(stage, question, dialogue, index, outcome)
        solved = solved or outcome.success
        if rate is not None:  # the best of many is not what the model would have said
            stage.group.successes[number] = rate
        if outcome.over or ended:
            return
        previous = outcome.answer


def _internalise(
    stage: Stage[RetrySettings], question: Question, dialogue: Dialogue, index: int, outcome: Outcome
) -> None:
    """Writes the last answer again, on the question alone: its log-probs were sampled after other tokens and are not
    kept."""
    kept = Dialogue(stage, question, dialogue.episode)
    kept.repeat(Role.RETRY, dialogue.last.completion.ids)
    kept.score(index, replace(outcome, seconds=0.0), ended=True, **{INTERNALISED: True})


async def _answer(
    stage: Stage[RetrySettings], dialogue: Dialogue, environment: Playing, retried: bool, taught: bool
) -> str:
    """The next answer, after a reflection where the recipe wants one."""
    settings = stage.settings
    write = dialogue.hand_over if taught else dialogue.say
    if retried and settings.reflect:
        dialogue.hear(asked(environment.observation) + settings.reflect_prompt)
        if settings.fixed_reflection is None:
            await write(Role.REFLECTION)
        else:
            dialogue.author(Role.REFLECTION, settings.fixed_reflection)
        dialogue.hear(settings.retry_prompt)
    elif retried:
        dialogue.hear(asked(environment.observation))
    return await write(Role.ATTEMPT)


async def _best(
    stage: Stage[RetrySettings], dialogue: Dialogue, environment: Playing
) -> tuple[Dialogue, Outcome, float]:
    """The best of `best_of` last answers by its reward, the first of equals, and the share of right ones.

    The others are not kept.
    """
    state = await environment.snapshot()
    branches = [dialogue.branch(dialogue.episode) for _ in range(stage.settings.best_of)]
    texts = await asyncio.gather(*(_answer(stage, branch, environment, True, taught=False) for branch in branches))
    outcomes = []
    for text in texts:
        await environment.restore(state)
        outcomes.append(await environment.step(text))
    best = max(range(len(outcomes)), key=lambda n: outcomes[n].reward)
    return branches[best], outcomes[best], sum(outcome.success for outcome in outcomes) / len(outcomes)
