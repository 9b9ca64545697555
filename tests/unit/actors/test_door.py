"""One door: whatever an environment or a task source returns is the contract behind it, or ends its episode by name."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from support.rollout_house import House

from actors import door, environments
from actors.config import DataSettings, EnvironmentSettings
from actors.door import EpisodeFailure
from actors.environments.base import OneAnswer, TextEnvironment, Verdict
from actors.messages import LONGEST_TEXT
from actors.rollout_config import RetrySettings
from protocols.errors import SettingError
from protocols.turns import Role

INFO = {"success": True, "answer": "a"}


def step(observation="said", reward=1.0, terminated=False, truncated=False, info=INFO):
    return door.outcome("Env", (observation, reward, terminated, truncated, info), 0.5)


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.array(1.0), Fraction(1, 1), np.int8(1)], ids=repr)
def test_a_reward_is_whatever_number_stands_for_it(reward):
    outcome = step(reward=reward)[1]
    assert outcome.reward == 1.0 and type(outcome.reward) is float


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no number"),
        ("1", "no number"),
        ([1.0], "no number"),
        (np.array([1.0]), "no number"),
        (1j, "no number"),
        (10**400, "no number"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
        (1e300, "too large"),
    ],
    ids=repr,
)
def test_a_reward_that_is_no_finite_number_ends_the_episode_and_is_shown(value, said):
    with pytest.raises(EpisodeFailure, match=rf"Env\.step returned reward .*{said}") as failure:
        step(reward=value)
    assert failure.value.kind == "returned"


def test_booleans_of_numpy_are_booleans():
    info = {"success": np.bool_(True), "refused": np.bool_(False), "answer": "a"}
    outcome = step(terminated=np.bool_(True), truncated=np.int64(0), info=info)[1]
    assert (outcome.success, outcome.refused, outcome.terminated, outcome.truncated) == (True, False, True, False)
    assert {type(found) for found in (outcome.success, outcome.refused, outcome.terminated)} == {bool}
    assert step(info={"success": 1.0})[1].success is True


@pytest.mark.parametrize("values", [{"terminated": None}, {"truncated": "no"}, {"info": {"success": None}}], ids=repr)
def test_what_is_neither_true_nor_false_ends_the_episode(values):
    with pytest.raises(EpisodeFailure, match="neither true nor false"):
        step(**values)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (5, "5"),
        (np.int64(5), "5"),
        (Fraction(1, 2), "1/2"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        (np.str_("x"), "x"),
        (None, None),
    ],
    ids=repr,
)
def test_an_answer_is_a_text_that_is_equal_for_equal_answers(answer, text):
    found = step(info={"success": False, "answer": answer})[1].answer
    assert found == text and type(found) in (str, type(None))


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (None, "no text"),
        (b"x", "no text"),
        ({"a": 1}, "no text"),
        ("a\ud800b", "half of a character"),
        ("x" * (LONGEST_TEXT + 1), "1,000,000 is the most"),
    ],
    ids=["None", "bytes", "dict", "surrogate", "long"],
)
def test_an_observation_that_is_no_text_ends_the_episode(observation, said):
    with pytest.raises(EpisodeFailure, match=said):
        step(observation=observation)
    with pytest.raises(EpisodeFailure, match=r"Env\.reset returned"):
        door.question("Env", (observation, {}))


def test_a_first_observation_may_be_chat_messages_and_each_is_checked():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    assert door.question("Env", (messages, {})) == messages
    for wrong in ([], messages[:1], [{"role": "user", "content": "\udc80"}], ["2+2?"]):
        with pytest.raises(EpisodeFailure, match=r"Env\.reset returned"):
            door.question("Env", (wrong, {}))
    with pytest.raises(EpisodeFailure, match="observation, info"):
        door.question("Env", "2+2?")


@pytest.mark.parametrize("returned", [("x", 1.0, True, {}), "x", None, ("x", 1.0, False, False, None)], ids=repr)
def test_a_step_that_returns_other_than_five_values_with_an_info_ends_the_episode(returned):
    with pytest.raises(EpisodeFailure, match=r"Env\.step returned"):
        door.outcome("Env", returned, 0.0)
    with pytest.raises(EpisodeFailure, match="gym's old form"):
        door.outcome("Env", ("x", 1.0, True, {}), 0.0)


class Odd(TextEnvironment):
    blocking = False
    returned: tuple = ()

    @classmethod
    def tasks(cls, data, split):
        return []

    def start(self, task):
        return "say\n"

    def act(self, text):
        return self.returned


def test_a_group_goes_on_where_one_of_its_episodes_was_told_nonsense():
    class Once(Odd):
        made = 0

        def start(self, task):
            Once.made += 1
            self.returned = ("more\n", None if Once.made == 1 else 1.0, False, False, {"success": True})
            return "say\n"

    house = House(RetrySettings(turns=2, episodes=2), lambda prompt: "x", Once, {"id": "t"})
    roles = sorted((turn.episode, turn.role) for turn in house.turns)
    assert len({role for _, role in roles}) == 2 and sum(role is Role.ERROR for _, role in roles) == 1
    assert sum(role is Role.ATTEMPT for _, role in roles) == 2
    assert "Once.step returned reward None" in str(house.failures[0]) and house.spread == 0.0
    assert house.success == 1.0, "what broke off does not count as a failure of the model"


def test_no_rollout_steps_an_environment_that_has_truncated_its_episode():
    class Truncates(Odd):
        steps = 0

        def act(self, text):
            Truncates.steps += 1
            return "more\n", 0.0, False, True, {"success": False, "answer": "x"}

    house = House(RetrySettings(turns=4), lambda prompt: "x", Truncates, {"id": "t"})
    assert Truncates.steps == 1 and len(house.turns) == 1


class Doubled(OneAnswer):
    found: list = []

    @classmethod
    def tasks(cls, data, split):
        return cls.found

    def question(self, task):
        return task["q"]

    def judge(self, task, text):
        return Verdict(1.0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "two tasks of the id 'a': number 0 and number 2"),
        ([{"id": 1}], "the id 1 .int. in task number 0"),
        ([{"id": "a"}, {"q": "1"}], "a task without an `id`: number 1"),
        ([{"id": ""}], "no text"),
        (["a"], "no map"),
        ([{"id": "a", "array": np.zeros(3)}], "task 'a' that cannot be sent"),
        ([{"id": "a", "q": "\ud800"}], "task 'a' that cannot be sent"),
        ({"id": "a"}, "no sequence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tasks_that_cannot_be_told_apart_or_sent_are_refused_with_the_first_one(found, said, monkeypatch):
    monkeypatch.setattr(Doubled, "found", found)
    with pytest.raises(SettingError, match=said):
        environments.tasks(EnvironmentSettings(name=f"{__name__}:Doubled"), DataSettings(), "train")


def test_a_task_source_that_raises_is_named_in_one_line():
    class Raises(Doubled):
        @classmethod
        def tasks(cls, data, split):
            raise KeyError("answer")

    globals()["Raises"] = Raises
    with pytest.raises(SettingError, match=r"Raises\.tasks\('test'\) raised KeyError: 'answer'"):
        environments.tasks(EnvironmentSettings(name=f"{__name__}:Raises"), DataSettings(), "test")
