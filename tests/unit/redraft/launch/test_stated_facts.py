"""A rollout and a credit from outside are played, credited, and held to the facts that they state, like known ones."""

import pickle

import numpy as np
import pytest
import yaml
from support.places import RECIPES
from support.rollout_house import House
from support.seventh import Level, SecondThought

from actors import environments
from learner.credits import credit
from protocols.errors import SettingError
from protocols.turns import Group, Role
from redraft import recipe as recipes
from redraft.launch import preflight

SEVENTH = "rollout={name: 'support.seventh:SecondThought', turns: 2, episodes: 2, options: {words: hm}}"
LEVEL = "learner.credit={name: 'support.seventh:Level', options: {revision: 0.5}}"
AWR = "learner.objective={name: awr}"
ROLES = "learner.roles={attempt: 1, revision: 1, retry: 1}"


def stated(*overrides: str) -> recipes.Recipe:
    """The quickstart's recipe with parts from outside, as a command has it before it starts."""
    return preflight.with_facts(recipes.load(RECIPES / "quickstart.yaml", [SEVENTH, LEVEL, AWR, ROLES, *overrides]))


def test_what_parts_from_outside_state_goes_with_the_recipe_to_every_process():
    arrived = pickle.loads(pickle.dumps(stated()))
    assert arrived.rollout.facts == SecondThought.facts and arrived.learner.credit.facts == Level.facts
    assert arrived.rollout.tested(turns=None, episodes=3).facts == SecondThought.facts
    assert recipes.build(yaml.safe_load(arrived.dump())).rollout.options == {"words": "hm"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.roles={action: 1}"], "writes turns of role attempt, retry, revision, and none has a weight"),
        (["learner.credit={name: group}"], "group compares whole episodes, .* set it to turnwise"),
        (["learner.credit={name: reflection}"], "reflection compares retries of one failure, .* set it to turnwise"),
        (["learner.objective={name: grpo}"], "never trains the words between its answers; set it to awr or sft"),
        (["rollout.episodes=1"], "set 2 or more, or play more episodes"),
        (["rollout={name: reflect}"], None),
        (["rollout={name: hint, episodes: 2}", "data.failures=wrong.jsonl"], "hint does not begin from failed answers"),
        (["data.failures=wrong.jsonl"], None),
        (["steps=0", "learner.credit={name: group}"], None),
    ],
)
def test_a_recipe_is_checked_by_what_they_state(overrides, words):
    if words is None:
        assert stated(*overrides)
    else:
        with pytest.raises(SettingError, match=words):
            stated(*overrides)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("Misstated", "support.seventh:Misstated.facts is .*, not a RolloutFacts. Make it a RolloutFacts"),
        ("Nobody", "cannot be imported"),
    ],
)
def test_facts_that_are_none_are_refused(part, words):
    with pytest.raises(SettingError, match=f"^rollout.name: .*{words}"):
        stated(f"rollout={{name: 'support.seventh:{part}', episodes: 2}}")


def test_a_class_that_plays_nothing_is_refused():
    with pytest.raises(SettingError, match=r"^rollout.name: .* neither a function nor a class with `play`"):
        preflight.check_environment(stated("rollout={name: 'support.seventh:Unplayable', episodes: 2}"))


def test_they_are_played_and_credited_like_known_ones():
    recipe = stated("environment={name: 'support.coins:Coins'}")
    [task, *_] = environments.tasks(recipe.environment, recipe.data, "train")
    says = iter("abab")
    house = House(recipe.rollout, lambda prompt: next(says), "support.coins:Coins", task)
    assert {turn.role for turn in house.turns} == SecondThought.facts.writes
    (worth,) = credit([Group(bytes(16), 0, tuple(house.turns))], recipe.learner.credit)
    of_role = {role: sorted(worth[[turn.role is role for turn in house.turns]]) for role in SecondThought.facts.writes}
    assert of_role[Role.ATTEMPT] == [-0.5, 0.5]
    np.testing.assert_allclose(np.array(of_role[Role.REVISION]) - of_role[Role.RETRY], 0.5)
