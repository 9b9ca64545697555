"""Games of textarena: alone and against an opponent, the same by the same seed, and killed where they hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.extras import brings
from support.rollout_house import House
from support.tokenizers import hermes
from support.waiting import deadline_s

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.rollout_config import ActSettings, SearchSettings
from protocols.errors import SettingError
from protocols.turns import Role

GUESS, DUEL = "GuessTheNumber-v0", "TicTacToe-v0"
TASK = {"id": "textarena/7", "seed": 7}
OPPONENT = '''
"""Moves of the other player."""
import re


def first_free(heard):
    board = heard.rpartition("Available Moves:")[2]
    return re.findall(r"\\[\\d\\]", board)[0]


def stuck(heard):
    while True:
        pass


def broken(heard):
    raise KeyError(heard[:3])
'''


def settings(game: str, **options) -> EnvironmentSettings:
    given = {"game": game, "limit_s": deadline_s(60)} | options
    return EnvironmentSettings(name="textarena", options=given, time_limit_s=deadline_s(90))


def played(make: EnvironmentSettings, says, rollout=None, task=TASK) -> House:
    rollout = rollout or ActSettings(turns=10)
    return House(rollout, says, lambda: environments.make(make), task, tokenizer=hermes(), limit_s=make.time_limit_s)


class Halving:
    """Says the number in the middle of what the game's hints leave."""

    def __init__(self):
        self.low, self.high, self.last = 1, 20, 0

    def __call__(self, prompt: str) -> str:
        hint = re.findall(r"number is (lower|higher)", prompt)
        if hint and self.last:
            self.low, self.high = (self.last + 1, self.high) if hint[-1] == "higher" else (self.low, self.last - 1)
        self.last = (self.low + self.high) // 2
        return f"[{self.last}]"


@brings("textarena")
def test_a_game_alone_is_played_to_its_end_and_again_in_the_same_way():
    games = [played(settings(GUESS), Halving()) for _ in range(2)]
    for found in games:
        assert not found.failures and found.success == 1
        assert found.turns[-1].terminated and found.turns[-1].reward == 1
        assert "guess the number between 1 and 20" in found.prompts[0]
    first, second = ([game.text(turn) for turn in game.turns] for game in games)
    assert first == second and len(first) > 1


@brings("textarena")
def test_a_move_that_is_not_allowed_is_refused_and_a_second_one_loses():
    found = played(settings(GUESS), lambda prompt: "[100]")
    assert [bool(turn.extra.get("refused")) for turn in found.turns] == [True, False]
    assert found.turns[-1].terminated and found.success == 0


@pytest.fixture
def opponent(tmp_path: Path):
    file = tmp_path / "others.py"
    file.write_text(OPPONENT)
    return lambda name: {"players": 2, "opponent": f"{file}:{name}"}


@brings("textarena")
@pytest.mark.parametrize("seed", [0, 1], ids=["it begins", "the other begins"])
def test_an_opponent_is_played_against_from_either_seat(opponent, seed):
    def last_free(prompt: str) -> str:
        return re.findall(r"\[\d\]", prompt.rpartition("Available Moves:")[2])[-1]

    found = played(settings(DUEL, **opponent("first_free")), last_free, task={"id": "x", "seed": seed})
    assert not found.failures and f"You are Player {seed} in Tic Tac Toe" in found.prompts[0]
    assert (f"Player {1 - seed} placed their symbol" in found.prompts[0]) == (seed == 1)
    assert found.turns[-1].terminated and found.turns[-1].reward in (-1, 0, 1)
    assert not any(turn.extra.get("refused") for turn in found.turns)


@brings("textarena")
def test_a_search_goes_back_by_playing_the_same_seed_again():
    say = iter(f"[{number}]" for _ in range(50) for number in range(1, 21))
    found = played(settings(GUESS), lambda prompt: next(say), SearchSettings(turns=3, simulations=2, expansions=2))
    assert not found.failures and found.close.extra["root"][0] >= 2


@brings("textarena")
@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("stuck", "hung", r"TicTacToe-v0 made no move within environment\.options\.limit_s="),
        ("broken", "raised", "TicTacToe-v0 raised KeyError: 'You'"),
    ],
)
def test_an_opponent_that_hangs_or_raises_costs_its_episode(opponent, name, kind, cause):
    made = settings(DUEL, **opponent(name), limit_s=1.0 if name == "stuck" else deadline_s(60))
    found = played(made, lambda prompt: "[4]", task={"id": "x", "seed": 0})
    (failure,) = found.failures
    assert failure.kind == kind and re.search(cause, str(failure)) and found.turns[-1].role is Role.ERROR


@brings("textarena")
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"game": "Hoops-v0"}, r"options\.game: 'Hoops-v0' cannot be played: ValueError: .* not found in registry"),
        ({"game": DUEL}, r"options\.game: 'TicTacToe-v0' cannot be played: AssertionError: .*players has to be 2"),
        ({"game": DUEL, "players": 2}, r"options\.opponent: 2 players need one"),
        ({"game": GUESS, "limit_s": 60.0}, r"time_limit_s: 30 is too short"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused_before_work_starts(options, problem):
    with pytest.raises(SettingError, match=problem):
        environments.make(EnvironmentSettings(name="textarena", options=options))


@brings("textarena")
def test_splits_have_no_seed_in_common():
    train, test = (environments.tasks(settings(GUESS), DataSettings(), split) for split in ("train", "test"))
    assert test and not {task["seed"] for task in train} & {task["seed"] for task in test}
