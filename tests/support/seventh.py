"""A rollout and a credit from outside, as a user would write them: each states its facts."""

from __future__ import annotations

import numpy as np

from actors.messages import asked
from actors.rollout_config import RolloutFacts
from actors.rollouts.dialogue import Dialogue
from learner.credit_config import CreditFacts
from protocols.turns import Role


class SecondThought:
    """An answer, words that nobody sampled, and one more answer. Its first answer may be given: a failed one."""

    facts = RolloutFacts(
        writes=frozenset({Role.ATTEMPT, Role.REVISION, Role.RETRY}),
        authored="the words between its answers",
        offers=frozenset({"turns"}),
        starts_from_failures=True,
        variety="rollout.options.thoughts",
    )

    @staticmethod
    async def play(stage) -> None:
        await stage.each_episode(_episode)


async def _episode(stage, environment, number: int) -> None:
    dialogue = Dialogue(stage, environment.observation, number)
    dialogue.score(0, await environment.step(await dialogue.say(Role.ATTEMPT)))
    dialogue.hear(asked(environment.observation))
    dialogue.author(Role.REVISION, stage.settings.options["words"])
    dialogue.hear(asked(environment.observation))
    dialogue.score(1, await environment.step(await dialogue.say(Role.RETRY)))


class Level:
    """Half a point above the mean of the turn's number for a revision, the plain difference for all others."""

    facts = CreditFacts(compares="turns", instead="play more episodes")

    @staticmethod
    def credit(batch, settings) -> list[np.ndarray]:
        return [_level(group, settings.options["revision"]) for group in batch]


def _level(group, bonus: float) -> np.ndarray:
    means = {
        one.index: np.mean([turn.reward for turn in group.turns if turn.index == one.index]) for one in group.turns
    }
    extra = [bonus if turn.role is Role.REVISION else 0.0 for turn in group.turns]
    return np.array([t.reward - means[t.index] + e for t, e in zip(group.turns, extra, strict=True)], np.float32)


class Misstated:
    """Its facts are none."""

    facts = {"writes": {"attempt"}}

    @staticmethod
    async def play(stage) -> None: ...


class Unplayable:
    """A class that plays nothing."""
