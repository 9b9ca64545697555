"""Rollouts say how an episode is played. They do not know which objective will use the turns.

A rollout is a coroutine `play(stage, environment)`: it samples with `stage.engine`, acts in an environment that was
reset to the task, and writes turns to `stage.group`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from actors.config import RolloutSettings, SamplingSettings
from actors.engines import Completion, Engine, PromptTooLong
from actors.group import NO_TOKENS, GroupWriter
from actors.play import EpisodeFailure, Outcome, Playing
from actors.rendering import Renderer
from protocols.turns import Role, Stop


@dataclass(frozen=True, slots=True)
class Stage:
    """All that one episode is played with."""

    engine: Engine
    renderer: Renderer
    group: GroupWriter
    settings: RolloutSettings
    sampling: SamplingSettings
    episode: int


class Aborted(Exception):
    """The engine gave a generation up: the whole group is abandoned."""


class Dialogue:
    """One linear episode: all its tokens so far, and what was said but not yet scored."""

    def __init__(self, stage: Stage, text: str):
        self._stage = stage
        self._ids = NO_TOKENS
        self._prompt = stage.renderer.first(text)
        self._parent = -1
        self._said: list[tuple[Role, np.ndarray, Completion]] = []

    async def say(self, role: Role) -> str:
        """Samples the model's next message and returns its text. It is written when it is scored."""
        self._ids = np.concatenate((self._ids, self._prompt))
        try:
            completion = await self._stage.engine.generate(self._ids, self._stage.sampling)
        except PromptTooLong as error:
            raise EpisodeFailure("too_long", str(error)) from None
        if completion.stop is Stop.ABORTED:
            raise Aborted
        self._said.append((role, self._prompt, completion))
        self._ids = np.concatenate((self._ids, completion.ids))
        return self._stage.renderer.text(completion.ids)

    def hear(self, text: str) -> None:
        """The next message to the model: the tokens between its last one and its next."""
        self._prompt = self._stage.renderer.next(text, ended=self._said_last().stop is Stop.END)

    def score(self, index: int, outcome: Outcome) -> None:
        """Writes what was said since the last score. A reflection carries the reward of the attempt it led to."""
        for role, prompt, completion in self._said:
            self._parent = self._stage.group.turn(
                role,
                self._parent,
                prompt,
                completion,
                episode=self._stage.episode,
                index=index,
                reward=outcome.reward,
                environment_s=outcome.seconds,
                terminated=outcome.terminated,
                truncated=outcome.truncated,
                extra={"success": outcome.success, "answer": outcome.answer},
            )
        self._last, self._said = completion, []

    def _said_last(self) -> Completion:
        return self._said[-1][2] if self._said else self._last


Play = Callable[[Stage, Playing], Awaitable[None]]


def named(name: str) -> Play:
    """The rollout of that name."""
    from actors.rollouts import attempt, retry

    return {"attempt": attempt.play, "retry": retry.play}[name]
