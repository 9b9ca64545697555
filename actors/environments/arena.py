"""`textarena`: games of the package of that name (arXiv 2504.11442), alone or against an opponent of yours.

    environment: {name: textarena, options: {game: FrozenLake-v0}}
    environment: {name: textarena, options: {game: TicTacToe-v0, players: 2, opponent: "mine.py:move"}}

The package is an extra. Each game has a process of its own (arena_worker.py), since games draw from the random
numbers that a process has in common, and one that does not come to an end can only be killed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.config import DataSettings
from actors.door import EpisodeFailure
from actors.environments import extras
from actors.environments.base import TextEnvironment
from actors.environments.killable import Killable, Lost
from protocols import own_code
from protocols.errors import SettingError

TRAIN, TEST = 10_000, 1_000  # seeds of each split
OPTIONS = "environment.options"


class TextArena(TextEnvironment):
    """A task is a seed. The model hears what is new to its player: the rules at first, boards, what others did. The
    reward is the game's own for that player, at the end; `success` is the least one that counts as a success.

    `game` is the package's name of it, `config` what the game is made with. The model plays each of the `players` in
    turn, by the seed; the others' moves are `opponent`'s, FILE.py:function, which is told what its player hears and
    returns what that says. A move that is not allowed is refused, and a second one in a row loses, as the game says.
    `limit_s`: longest time for a move, with those of opponents; below environment.time_limit_s.
    """

    feedbacks = ("binary",)
    instances = 8  # each is a process of some 120 MB

    def __init__(
        self,
        feedback: str = "binary",
        game: str = "",
        config: dict | None = None,
        players: int = 1,
        opponent: str | None = None,
        success: float = 1.0,
        limit_s: float = 20.0,
    ):
        super().__init__(feedback)
        extras.need("textarena", "textarena")
        if players > 1 and opponent is None:
            raise SettingError(f"{OPTIONS}.opponent", f"{players} players need one", "Name FILE.py:function")
        self._game, self._players, self._wanted, self._limit_s = game, players, success, limit_s
        self.longest_s = limit_s
        code = own_code.sources(opponent) if opponent and own_code.is_file(opponent) else {}
        first = {"game": game, "config": config or {}, "players": players, "opponent": opponent, "code": code}
        program = Path(__file__).with_name("arena_worker.py")
        orphan_s = limit_s * (os.cpu_count() or 1)
        self._process = Killable(program, [str(orphan_s)], processes=1, queue_s=limit_s, first=first)
        try:
            self._process.start()
        except RuntimeError as error:
            self.close()
            cure = "Name a game of the package, with its number of players, and what it needs of config"
            raise SettingError(f"{OPTIONS}.game", f"{game!r} cannot be played: {error}", cure) from None

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> Sequence[dict]:
        return cls.tasks_with({}, data, split)

    @classmethod
    def tasks_with(cls, options: Mapping[str, Any], data: DataSettings, split: str) -> Sequence[dict]:
        seeds = range(TRAIN) if split == "train" else range(TRAIN, TRAIN + TEST)
        return [{"id": f"textarena/{options.get('game')}/{seed}", "seed": seed} for seed in seeds]

    def start(self, task: dict) -> str:
        found = self._asked({"seed": task["seed"], "player": task["seed"] % self._players})
        if found["done"]:
            raise EpisodeFailure("returned", f"{self._game} is over before the first move")
        return found["heard"]

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        found = self._asked({"move": text})
        reward, done = found["reward"], found["done"]
        info = {"success": done and reward >= self._wanted, "refused": found["refused"]}
        return found["heard"], reward, done, False, info

    def close(self) -> None:
        self._process.end()

    def _asked(self, question: dict) -> dict:
        try:
            found = self._process.ask(self._game, question, self._limit_s)
        except Lost as lost:
            if lost.hung:
                problem = f"{self._game} made no move within environment.options.limit_s={self._limit_s:g}"
                raise EpisodeFailure("hung", problem) from None
            raise EpisodeFailure("raised", f"{self._game} ended its process") from None
        if "raised" in found:
            raise EpisodeFailure("raised", f"{self._game} raised {found['raised']}")
        return found["value"]
