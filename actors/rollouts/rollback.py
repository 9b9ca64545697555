"""rollback: where an episode fails, back to the action that went wrong, and on with what the failure has shown (LEAFE).

    played     a -> b -> c -> end, worth 0          b went wrong: what to do instead is told before the question
    ways on         `-> d -> e -> end, worth 1      kept as a branch below a, as if nothing had been told

The first action of such a branch has the role revision: what comes before it is not trained for it. Its tokens were
sampled after other ones, so that their log-probs are not kept (arXiv 2603.16843).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.action_config import RollbackSettings
from actors.door import EpisodeFailure
from actors.environment_pool import Playing
from actors.episode_config import EXPERIENCE
from actors.messages import Question
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from actors.rollouts.faults import JUDGES, Step
from actors.rollouts.tree import worth
from protocols.turns import TOO_LONG, Role


async def play(stage: Stage[RollbackSettings]) -> None:
    stage.group.compared = [0.0]
    await stage.each_episode(_episode)
    stage.group.facts["alpha"] = stage.settings.alpha


async def _episode(stage: Stage[RollbackSettings], environment: Playing, number: int) -> None:
    settings, question = stage.settings, environment.observation
    steps = await _on(stage, environment, Dialogue(stage, question, number, tools=environment.tools), written=True)
    if worth(steps[-1].outcome) > settings.alpha:
        _useful(stage)
        return
    found = await JUDGES[settings.judge](stage, environment, question, steps)
    if found is None:
        return
    wrong, advice = found
    start = wrong + (settings.back_to == "after")
    if start >= len(steps):  # nothing could be done any more
        return
    told = replace(stage, experience=settings.template.replace(EXPERIENCE, advice))
    for branch in range(settings.branches):
        await environment.restore(steps[start].state)
        dialogue = _again(told, question, environment, steps[:start])
        moves = await _on(stage, environment, dialogue, start)
        if moves and worth(moves[-1].outcome) > settings.alpha:
            _write(steps[start].before.branch(settings.episodes + number * settings.branches + branch), moves, start)
            _useful(stage)


async def _on(
    stage: Stage[RollbackSettings], environment: Playing, dialogue: Dialogue, start: int = 0, written: bool = False
) -> list[Step]:
    """Acts from action `start` to an end of the episode. A way on that is not written ends where nothing fits any
    more."""
    steps: list[Step] = []
    for index in range(start, stage.settings.turns):
        if steps:
            dialogue.hear(environment.observation)
        before = dialogue.branch(dialogue.episode)
        state = await environment.snapshot() if written else None
        try:
            text = await dialogue.say(Role.ACTION)
        except EpisodeFailure as failure:
            if written or failure.kind != TOO_LONG:
                raise
            stage.failed(failure)
            return []
        outcome = await environment.step(text)
        if written:
            dialogue.score(index, outcome, ended=index + 1 == stage.settings.turns)
        ids = dialogue.last.completion.ids
        steps.append(Step(before, state, ids, text, outcome, environment.observation))
        if outcome.over:
            break
    return steps


def _again(stage: Stage[RollbackSettings], question: Question, environment: Playing, steps: Sequence[Step]) -> Dialogue:
    """The dialogue up to after these steps, told what the stage has to tell."""
    dialogue = Dialogue(stage, question, tools=environment.tools)
    for step in steps:
        dialogue.repeat(Role.ACTION, step.ids)
        dialogue.hear(step.observation)
    return dialogue


def _write(dialogue: Dialogue, moves: Sequence[Step], start: int) -> None:
    """A new branch of the episode, as if it had been played without being told anything."""
    for position, move in enumerate(moves):
        if position:
            dialogue.hear(moves[position - 1].observation)
        dialogue.repeat(Role.ACTION if position else Role.REVISION, move.ids)
        dialogue.score(start + position, move.outcome, ended=position + 1 == len(moves))


def _useful(stage: Stage) -> None:
    stage.group.compared = [0.0, 1.0]
