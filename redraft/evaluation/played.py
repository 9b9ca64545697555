"""Turns that an evaluation played, as text: each episode's actions and what was said to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from actors import rendering
from actors.environments.base import Played
from protocols.turns import ASIDES, Role, Turn


class Reader:
    """Reads turns of the model in a folder."""

    def __init__(self, model: Path):
        self._renderer = rendering.load(model, "new_root")

    def episodes(self, turns: Sequence[Turn]) -> list[Played]:
        """The episodes of one task that came to their end, in the order of their numbers."""
        found: dict[int, list[Turn]] = defaultdict(list)
        for turn in sorted(turns, key=lambda turn: turn.turn):
            if turn.role not in ASIDES:
                found[turn.episode].append(turn)
        whole = [own for _, own in sorted(found.items()) if all(turn.role is not Role.ERROR for turn in own)]
        return [self._played(own) for own in whole]

    def _played(self, turns: list[Turn]) -> Played:
        done = [self._renderer.text(turn.response) for turn in turns]
        said = [self._renderer.tokenizer.decode(turn.prompt, skip_special_tokens=True) for turn in turns[1:]]
        steps = tuple(zip(done, [*said, ""], strict=True))
        return Played(steps, sum(turn.reward for turn in turns), bool(turns[-1].extra.get("success")))
