"""The quickstart as an agent's program makes the turns, the credit, the sequences and the figures of `retry` itself."""

import contextlib
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from support.places import RECIPES, ROOT
from support.rollout_house import House, Speaker

from actors import environments
from actors.config import EnvironmentSettings
from actors.environments.signs_tasks import SIGNS, attempt_of, targets_of
from actors.rollout_config import Rollout
from learner.batches.linearise import linearise
from learner.credits import credit
from learner.objectives import make
from protocols.turns import Group, Role
from redraft import recipe as recipes
from redraft.evaluation.measures import summarise
from redraft.models.make import build_tokenizer

TASKS = 3
BOTH = ("quickstart", "signs-agent")
SIGNS_HERE = EnvironmentSettings(name="signs", feedback="residual")


class Says(Speaker):
    """Says what the prompt decides, right, wrong, malformed or cut, with log-probs of its own; keeps how it samples."""

    def __init__(self, task: dict):
        self.sampled = []

        def says(prompt: str) -> str:
            chance = hashlib.blake2b(prompt.encode()).digest()
            if re.search(r"\?\S+\n$", prompt):
                return ["", task["digits"][1], task["digits"][2:], "x" * 9, " 1 "][chance[0] % 5]
            right = targets_of(task["digits"])[task["target"]][0]
            wrong = attempt_of(task["digits"], SIGNS[chance[1] % len(SIGNS)])
            return [attempt_of(task["digits"], right), wrong, wrong, "7+", "", "1" * 12][chance[0] % 6]

        super().__init__(build_tokenizer("characters", 4096), says)

    async def generate(self, prompt_ids, sampling):
        self.sampled.append(sampling)
        made = await super().generate(prompt_ids, sampling)
        return replace(made, logprobs=-(made.ids + len(prompt_ids)).astype(np.float32) / 64)


def recipe_of(name: str) -> recipes.Recipe:
    return recipes.load(RECIPES / f"{name}.yaml")


def play(name: str, rollout: Rollout | None = None, tasks: int = TASKS) -> list[House]:
    """What the recipe's rollout makes of some tasks."""
    recipe = recipe_of(name)
    chosen = environments.tasks(SIGNS_HERE, recipe.data, "train")[:tasks]
    named = {"seed": 3, "max_tokens": recipe.sampling.max_tokens, "limit_s": 60.0}
    with contextlib.chdir(ROOT):  # where the agent's recipe finds its program
        return [
            House(rollout or recipe.rollout, Says(task), lambda: environments.make(SIGNS_HERE), task, **named)
            for task in chosen
        ]


@pytest.fixture(scope="module")
def played() -> dict[str, list[House]]:
    return {name: play(name) for name in BOTH}


def facts(turn) -> tuple:
    """All of a turn but its times, and what people are told beside it."""
    where = (turn.turn, turn.parent, turn.after, turn.index, turn.episode, turn.role, turn.stop)
    arrays = (turn.prompt.tolist(), turn.response.tolist(), turn.logprobs.tolist())
    return (*where, *arrays, turn.versions, turn.reward, turn.extra["success"])


def test_an_agent_and_retry_make_the_same_turns_token_by_token(played):
    for own, other in zip(*(played[name] for name in BOTH), strict=True):
        assert [facts(turn) for turn in other.turns] == [facts(turn) for turn in own.turns]
        assert other.engine.prompts == own.engine.prompts and other.engine.sampled == own.engine.sampled
        assert (other.success, other.spread, other.asked) == (own.success, own.spread, own.asked) and own.asked == 9
    rewards = {turn.reward for house in played["quickstart"] for turn in house.turns}
    assert rewards == {0.0, 1.0}, "some answers were right, and some were not"


def test_what_is_trained_of_them_is_the_same_with_the_same_credit(played):
    lines = []
    for name in BOTH:
        learner = recipe_of(name).learner
        batch = [Group(bytes([n]) * 16, 0, tuple(house.turns)) for n, house in enumerate(played[name])]
        worth = credit(batch, learner.credit)
        lines.append((worth, linearise(batch, worth, learner, make(learner.objective))))
    (own_worth, own), (other_worth, other) = lines
    assert any(worth.any() for worth in own_worth)
    np.testing.assert_array_equal(np.concatenate(other_worth), np.concatenate(own_worth))
    assert len(other.sequences) == len(own.sequences) == TASKS
    for one, two in zip(own.sequences, other.sequences, strict=True):
        for name in type(one).__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_the_recipes_differ_in_the_rollout_and_in_what_sets_the_age_of_answers_and_in_nothing_else():
    age = {"rounds", "max_staleness"}
    own, other = (recipe_of(name).model_dump(exclude={"name": True, "rollout": True, "learner": age}) for name in BOTH)
    assert other == own


def test_an_evaluation_plays_and_counts_them_alike(played):
    figures = []
    for name in BOTH:
        whole, first = (recipe_of(name).rollout.tested(*asked) for asked in ((None, 1), (1, 3)))
        assert whole == recipe_of(name).rollout, "whole episodes are played as in training"
        firsts = play(name, first, tasks=1)
        assert not any(house.failures for house in firsts)
        told = {"sampled": [house.turns for house in played[name][:1]], "independent": [firsts[0].turns]}
        found = summarise(told, 5).sampled
        figures.append((found.accuracy_by_turn, found.keep_rate, found.fix_rate, found.pass_k))
        assert sorted(turn.episode for turn in firsts[0].turns if turn.role is Role.ATTEMPT) == [0, 1, 2]
    assert figures[0] == figures[1]
