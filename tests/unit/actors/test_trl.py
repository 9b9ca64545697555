"""A class that was written for TRL's environment_factory plays here as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.rollout_house import House
from support.tokenizers import hermes

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.rollout_config import ActSettings
from actors.tools import calls
from protocols.errors import SettingError

MINE = '''
"""Guess a number, as TRL's documentation has people write an environment."""


class Guess:
    def __init__(self):
        self.reward = 0.0

    def reset(self, number, **kwargs) -> str | None:
        self.number, self.reward, self.over = number, 0.0, False
        return " It has one digit."

    def guess(self, value: int) -> str:
        """
        Guess the number.

        Args:
            value: The guessed number

        Returns:
            Whether it was right.
        """
        if self.over:
            raise ValueError("Game over.")
        self.over = value == self.number
        self.reward = float(self.over)
        return "right" if self.over else "wrong"

    def _secret(self):
        return self.number


class Paid(Guess):
    def get_reward(self):
        return {"right": self.reward, "short": 0.5}


class Silent(Guess):
    def reset(self, **kwargs):
        return 5


class Wants:
    def __init__(self, address):
        pass


def score(prompts, completions, environments, number, **kwargs):
    assert completions[0][-1]["role"] == "assistant" and len(prompts) == len(number) == 1
    return [environment.reward for environment in environments]


def none(environments, **kwargs):
    return [None for _ in environments]


def bare(environments, **kwargs):
    return 1.0
'''


@pytest.fixture
def settings(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    rows = [{"prompt": [{"role": "user", "content": f"Guess ({n})."}], "number": n % 10} for n in range(30)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(factory: str, reward: str = "", **options) -> EnvironmentSettings:
        given = {"factory": f"{tmp_path}/mine.py:{factory}"} | (
            {"reward": f"{tmp_path}/mine.py:{reward}"} if reward else {}
        )
        return EnvironmentSettings(name="trl", options=given | options)

    make.data = DataSettings(path=str(tmp_path / "train.jsonl"))
    return make


def played(make: EnvironmentSettings, data: DataSettings, says) -> House:
    task = next(task for task in environments.tasks(make, data, "train") if task["row"]["number"] == 4)
    said = iter(says)
    return House(
        ActSettings(turns=4), lambda prompt: next(said), lambda: environments.make(make), task, tokenizer=hermes()
    )


def guess(value) -> str:
    return calls.written("guess", {"value": value})


def test_its_methods_are_tools_and_the_first_message_without_a_call_ends_the_episode(settings):
    found = played(settings("Guess", "score"), settings.data, [guess(3), guess(4), "It is 4."])
    assert not found.failures and "Guess (" in found.prompts[0] and "). It has one digit." in found.prompts[0]
    assert "Guess the number." in found.prompts[0] and "_secret" not in found.prompts[0]
    assert "wrong" in found.prompts[1] and "right" in found.prompts[2]
    assert [turn.reward for turn in found.turns] == [0, 0, 1] and found.turns[-1].terminated and found.success == 1


def test_what_a_method_raises_is_told_to_the_model_and_a_message_may_come_at_once(settings):
    found = played(settings("Guess", "score"), settings.data, [guess(4), guess(5), guess("four"), "Done."])
    assert "Error: ValueError: Game over." in found.prompts[2] and "Error: wrong arguments: value" in found.prompts[3]
    assert [bool(turn.extra.get("refused")) for turn in found.turns] == [False, True, True, False]
    assert played(settings("Guess", "score"), settings.data, ["I give up."]).turns[-1].reward == 0


def test_a_class_may_say_its_reward_itself_with_named_parts(settings):
    found = played(settings("Paid"), settings.data, [guess(4), "Done."])
    assert found.turns[-1].reward == 1.5 and found.turns[-1].extra["parts"] == {"right": 1.0, "short": 0.5}
    assert "get_reward" not in found.prompts[0]


@pytest.mark.parametrize(
    ("factory", "reward", "cause"),
    [
        ("Silent", "score", "Silent.reset returned int, neither a text nor None"),
        ("Guess", "none", "none returned None: it does not judge this answer"),
        ("Guess", "bare", "bare returned 1.0, no list of one reward"),
    ],
)
def test_what_it_gets_wrong_costs_its_episode(settings, factory, reward, cause):
    (failure,) = played(settings(factory, reward), settings.data, ["Done."]).failures
    assert cause in str(failure)


@pytest.mark.parametrize(
    ("factory", "reward", "problem"),
    [
        ("Absent", "score", r"options\.factory: .*Absent' cannot be imported"),
        ("Wants", "score", r"options\.factory: .*Wants cannot be made: TypeError.*address"),
        ("Guess", "", r"options\.reward: .*Guess says no reward itself"),
        ("score", "score", r"options\.factory: .*score cannot be made"),
    ],
)
def test_what_cannot_play_is_refused_before_work_starts(settings, factory, reward, problem):
    with pytest.raises(SettingError, match=problem):
        environments.make(settings(factory, reward))


def test_a_fifth_of_the_rows_is_held_out(settings):
    train, test = (environments.tasks(settings("Guess", "score"), settings.data, split) for split in ("train", "test"))
    assert len(train) + len(test) == 30 and test and not {task["id"] for task in train} & {task["id"] for task in test}
