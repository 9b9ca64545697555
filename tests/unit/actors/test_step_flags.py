"""Flags of steps: the environment's, or those of a judge that is asked once an episode has ended."""

from __future__ import annotations

import pytest
from support.rollout_house import House

from actors import step_judge
from actors.door import EpisodeFailure
from actors.environments.base import TextEnvironment
from actors.environments.minicraft import Minicraft
from actors.episode_config import StepJudgeSettings
from actors.rollout_config import ActSettings, RetrySettings
from actors.rollouts import Helpers
from protocols.turns import Role
from redraft import recipe as recipes
from redraft.launch import preflight

ENDPOINT = {"url": "http://localhost:9/v1", "model": "any"}
TASK = {"id": "minicraft/0", "base": "abdfh", "recipes": ["dhc", "fab"], "good": 1}
ACTIONS = ["@2", "+f", "+f", "+d", "+a", "*2", "+b", "*2"]
GOOD = [False, True, False, False, True, False, True, True]


def acting(actions: list[str]):
    said = iter(actions)
    return lambda prompt: next(said)


def flags(house: House) -> list:
    return [turn.extra.get("good") for turn in house.turns if turn.role is not Role.ERROR]


def test_minicraft_flags_what_takes_a_missing_ingredient_of_the_good_recipe_and_the_craft():
    house = House(ActSettings(turns=8), acting(ACTIONS), "minicraft", TASK)
    assert flags(house) == GOOD


def test_a_judge_is_asked_once_an_episode_with_its_steps_and_flags_them_all():
    asked = []

    async def judge(task, steps, worth):
        asked.append((task, steps, worth))
        return [number % 2 == 0 for number in range(len(steps))]

    house = House(ActSettings(turns=8), acting(ACTIONS), "minicraft", TASK, helpers=Helpers(judge=judge))
    [(task, steps, worth)] = asked
    assert task == "abdfh;1dhc;2fab>\n" and [action for action, _ in steps] == ACTIONS and worth == 1.0
    assert [said for _, said in steps] == [".\n", ".\n", ".\n", ".\n", ".\n", "!\n", ".\n", ".\n"]
    assert flags(house) == [True, False] * 4
    assert [turn.parent for turn in house.turns] == [-1, 0, 1, 2, 3, 4, 5, 6]


def test_steps_that_each_begin_a_new_root_are_flagged_too():
    async def judge(task, steps, worth):
        return [True] * len(steps)

    said = iter(["1+2", "2+1", "3"])
    settings = RetrySettings(turns=3, context=1, stop_at_success=False)
    task = {"id": "signs/0", "digits": "7128", "target": 12}
    house = House(settings, lambda prompt: next(said), "signs", task, helpers=Helpers(judge=judge))
    assert [(turn.parent, turn.after) for turn in house.turns] == [(-1, -1), (0, 0), (-1, 1)]
    assert flags(house) == [True] * 3


def test_without_a_verdict_the_flags_stay_as_they_were():
    async def silent(task, steps, worth):
        return None

    house = House(ActSettings(turns=8), acting(ACTIONS), "minicraft", TASK, helpers=Helpers(judge=silent))
    assert flags(house) == GOOD, "the environment's own"


class Breaks(Minicraft):
    """Breaks at the third step."""

    def act(self, text):
        if self._steps == 2:
            raise RuntimeError("it broke")
        return super().act(text)


def test_an_episode_that_broke_off_is_not_judged_and_its_turns_are_kept():
    async def never(task, steps, worth):
        raise AssertionError("asked")

    house = House(ActSettings(turns=8), acting(ACTIONS), Breaks, TASK, helpers=Helpers(judge=never))
    assert [turn.role for turn in house.turns] == [Role.ACTION, Role.ACTION, Role.ERROR]
    assert house.turns[2].parent == 1 and [failure.kind for failure in house.failures] == ["raised"]


def test_episodes_of_a_group_are_held_apart():
    async def judge(task, steps, worth):
        return [action == "+f" for action, _ in steps]

    house = House(
        ActSettings(turns=2, episodes=3), lambda prompt: "+f", "minicraft", TASK, helpers=Helpers(judge=judge)
    )
    assert [(turn.turn, turn.parent, turn.after) for turn in house.turns] == [
        (number, parent, parent) for number, parent in enumerate((-1, 0, -1, 2, -1, 4))
    ]
    assert flags(house) == [True] * 6 and house.success == 0.0


def test_a_verdict_is_read_only_where_every_step_has_one():
    told = "Step 1 was fine.\nStep 1 Judgment: GOOD\n**Step 2 Judgment: BAD**\nstep 3 judgment: Good"
    assert step_judge.flags_of(told, 3) == [True, False, True]
    assert step_judge.flags_of(told, 4) is None and step_judge.flags_of(told, 2) is None
    assert step_judge.flags_of("all good", 1) is None
    assert step_judge.flags_of("Step 1 Judgment: GOOD\nOn reflection:\nStep 1 Judgment: BAD", 1) == [False]


def test_the_judge_reads_the_task_the_steps_cut_and_the_score_with_its_own_rule():
    won = step_judge.prompt_of("the task", [("go", "x" * 3000), ("stay", "ok")], 1.0)
    lost = step_judge.prompt_of("the task", [("go", "there")], 0.0)
    assert "+1.00" in won and "-1.00" in lost and "the task" in won
    assert "x" * 2000 in won and "x" * 2001 not in won and "Step 2\nAction: stay\nObservation: ok" in won
    assert step_judge.SUCCEEDED in won and step_judge.FAILED in lost
    assert "one label" in won and step_judge.flags_of(won, 1) == [True], "it shows the form that is read"


class Plain(TextEnvironment):
    """Flags nothing."""

    blocking = False

    @classmethod
    def tasks(cls, data, split):
        return [{"id": split}]

    def start(self, task):
        return "go"

    def act(self, text):
        return "ok", 0.0, False, False, {}


@pytest.fixture
def attributing() -> dict:
    return {
        "name": "x",
        "steps": 2,
        "model": {"make": {}},
        "environment": {"name": "minicraft"},
        "rollout": {"name": "act", "turns": 8, "episodes": 4},
        "learner": {"credit": {"name": "attributing"}},
        "actors": {"engine": {"name": "scripted"}},
    }


def test_credit_that_reads_flags_is_refused_where_nothing_flags(attributing):
    preflight.check_environment(recipes.build(attributing))
    attributing["environment"] = {"name": f"{__file__}:Plain"}
    with pytest.raises(Exception, match="nothing says so"):
        preflight.check_environment(recipes.build(attributing))
    attributing["rollout"]["step_judge"] = ENDPOINT
    preflight.check_environment(recipes.build(attributing))


def test_a_judge_that_nobody_reads_or_that_outlasts_a_lease_is_refused(attributing):
    attributing["rollout"]["step_judge"] = ENDPOINT
    assert recipes.build(attributing).rollout.tested(None, 1).step_judge is None, "evaluations ask nobody"
    with pytest.raises(Exception, match="lease_s"):
        recipes.build(attributing | {"actors": {"lease_s": 10}})
    with pytest.raises(Exception, match="reads what it says"):
        recipes.build(attributing | {"learner": {}})
    with pytest.raises(ValueError, match="not kept"):
        RetrySettings(step_judge=StepJudgeSettings(**ENDPOINT), best_of=4)


def test_what_an_environment_flags_is_true_or_false():
    class Odd(Minicraft):
        def act(self, text):
            said, reward, over, cut, info = super().act(text)
            return said, reward, over, cut, info | {"good": "very"}

    house = House(ActSettings(turns=8), acting(ACTIONS), Odd, TASK)
    [failure] = house.failures
    assert isinstance(failure, EpisodeFailure) and "info['good']" in str(failure)
