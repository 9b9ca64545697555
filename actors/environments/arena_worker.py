"""Plays one game of textarena: the program behind actors/environments/arena.py.

It hears {"game", "config", "players", "opponent", "code"}, then {"seed", "player"} for each new game and {"move"} for
each move of the model's, and says what its player hears, whether that was refused, the reward and whether it is over.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from actors import answering
from protocols import own_code


def begin(first: dict) -> Callable[[dict], dict]:
    import textarena  # pyright: ignore[reportMissingImports]  an extra

    own_code.install(first["code"])
    opponent = own_code.load(first["opponent"]) if first["opponent"] else None
    game = Game(textarena, first["game"], first["config"], first["players"], opponent)
    game.begin(0, 0)  # so that what it lacks is said before anything starts

    def answer(question: dict) -> dict:
        return game.move(question["move"]) if "move" in question else game.begin(**question)

    return answer


class Game:
    def __init__(self, arena: Any, name: str, config: dict, players: int, opponent: Callable[[str], str] | None):
        self._arena, self._name, self._config, self._players = arena, name, config, players
        self._opponent = opponent

    def begin(self, seed: int, player: int) -> dict:
        """A new game, made anew: some draw their secrets when they are made."""
        import numpy

        random.seed(seed)
        numpy.random.seed(seed)
        made = self._arena.make(self._name, **self._config)
        while isinstance(made, self._arena.Wrapper):  # they tell the whole history at each turn, and mend moves
            made = made.env
        made.reset(num_players=self._players, seed=seed)
        self._made, self._player = made, player
        return self._until_its_turn(False)

    def move(self, text: str) -> dict:
        done, _ = self._made.step(text)
        return self._until_its_turn(done)

    def _until_its_turn(self, done: bool) -> dict:
        state = self._made.state
        while not done and state.current_player_id != self._player:
            if self._opponent is None:
                raise RuntimeError(f"it is the turn of player {state.current_player_id}, who is nobody")
            mover, heard = self._made.get_observation()
            done, _ = self._made.step(self._opponent(self._said(heard, mover)))
        heard, state.observations[self._player] = state.observations[self._player], []
        rewards, about = self._made.close() if done else ({}, {})
        last = about.get(self._player, {}).get("reason") if done else None
        refused = not done and any(kind is self._arena.ObservationType.GAME_ADMIN for _, _, kind in heard)
        said = "\n\n".join(part for part in (self._said(heard, self._player), last) if part)
        return {
            "heard": said,
            "refused": refused,
            "reward": (rewards or {}).get(self._player, 0.0),
            "done": bool(done),
        }

    def _said(self, heard: Sequence[tuple[int, str, Any]], player: int) -> str:
        """What is new to a player: what the game says, and the words of others, with their names."""
        names, told = self._made.state.role_mapping, []
        for who, text, kind in heard:
            if kind is not self._arena.ObservationType.PLAYER_ACTION:
                told.append(text)
            elif who not in (player, -1):
                told.append(f"[{names.get(who, f'Player {who}')}] {text}")
        return "\n\n".join(told)


if __name__ == "__main__":
    answering.serve(begin, float(sys.argv[1]))
