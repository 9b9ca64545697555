"""Rollouts say how the episodes of a group are played. They do not know which objective will use the turns.

A rollout is a coroutine `play(stage)`: it samples with `stage.generate` or a `Dialogue`, acts in the environments that
`stage.episode` lends, and writes turns to `stage.group`. `rollout.name` is one of NAMES, or `FILE.py:play`, or
`FILE.py:Class` of a class with a static method `play` that states `facts` (actors/rollout_config.py).

An *episode* is one play of a task, from its question to its last turn; the field also calls it a trajectory or a
rollout. Here a rollout is the way of playing, and a trajectory one path from a root of the group to an end: a linear
episode is one, a search tree holds many, and a spliced one takes a bad beginning to a good end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np

from actors import experience
from actors.config import SamplingSettings
from actors.door import EpisodeFailure
from actors.engines import Completion, PromptTooLong, Sampler
from actors.environment_pool import EnvironmentPool, Playing
from actors.experience import Pool
from actors.group import GroupWriter
from actors.held import HeldEpisode, Rescore
from actors.messages import asked
from actors.rendering import Renderer
from actors.rollout_config import OwnRollout, Rollout
from protocols import metrics, named
from protocols.turns import TOO_LONG, Role, Stop
from protocols.weights import step_of

SETTING = "rollout.name"
NAMES = {
    "attempt": "actors.rollouts.attempt:play",
    "retry": "actors.rollouts.retry:play",
    "act": "actors.rollouts.act:play",
    "agent": "actors.rollouts.agent:play",
    "reflect": "actors.rollouts.reflect:play",
    "verify": "actors.rollouts.verify:play",
    "hint": "actors.rollouts.hint:play",
    "rollback": "actors.rollouts.rollback:play",
    "search": "actors.rollouts.search:play",
}

Played = TypeVar("Played", bound=Rollout, covariant=True)


class Aborted(Exception):
    """The engine gave a generation up: the whole group is abandoned."""


async def _unscored(ids: np.ndarray) -> None:
    """For who plays without experience."""
    return None


@dataclass(frozen=True, slots=True)
class Helpers:
    """What episodes need of their actor beside an engine, where the rollout's settings ask for it."""

    pool: Pool | None = None
    rescore: Rescore = _unscored
    judge: Callable[[str, Sequence[tuple[str, str]], float], Awaitable[list[bool] | None]] | None = None


@dataclass(frozen=True, slots=True)
class Stage(Generic[Played]):
    """All that one group is played with. `count(role, tokens)` is called for each response that is sampled."""

    engine: Sampler
    renderer: Renderer
    environments: EnvironmentPool
    group: GroupWriter
    task: dict
    seed: int
    settings: Played
    sampling: SamplingSettings
    failed: Callable[[EpisodeFailure], None]
    count: Callable[[Role, int], None]
    teacher: Callable[[list[dict]], Awaitable[str]] | None = None
    helpers: Helpers = Helpers()
    experience: str = ""
    """What this episode's dialogues are told before their question, and written without."""

    @property
    def step(self) -> int:
        """The training step of the weights that sample now."""
        return step_of(self.engine.version)

    async def episode(self, number: int, play: Callable[[Playing], Awaitable[Any]]) -> Any:
        """What `play(environment)` returns, in an environment that was reset to the task.

        A failure ends this episode alone, with a turn of role error, and returns None.
        """
        try:
            async with self.environments.one(self.task, self.seed + number) as environment:
                came = await play(environment)
            self.group.finished.add(number)
            return came
        except EpisodeFailure as failure:
            self.failed(failure)
            self.group.error(number, str(failure), failure.kind)
        finally:
            metrics.EPISODES.inc()

    async def each_episode(self, play: PlayEpisode) -> None:
        """Plays `settings.episodes` episodes at once, each in an environment of its own."""

        settings, pool = getattr(self.settings, "experience", None), self.helpers.pool
        told = frozenset() if settings is None else experience.chosen(settings, self.settings.episodes, self.seed)

        def one(number: int) -> Awaitable[Any]:
            own = pool if number in told else None
            if own is None and self.helpers.judge is None:
                return self.episode(number, lambda environment: play(self, environment, number))
            return self.episode(number, lambda environment: self._held(play, environment, number, own))

        await asyncio.gather(*map(one, range(self.settings.episodes)))

    async def _held(self, play: PlayEpisode, environment: Playing, number: int, pool: Pool | None) -> None:
        """Plays one episode and writes it when it has ended: judged, and with experience that it is written without."""
        question = asked(environment.observation)
        held = HeldEpisode(self.group)
        writer = cast(GroupWriter, held)  # of which a rollout with these options uses no more
        stage = replace(self, group=writer, experience="" if pool is None else pool.told(question))
        broken: EpisodeFailure | None = None
        try:
            await play(stage, environment, number)
        except EpisodeFailure as failure:
            broken = failure
        if stage.experience and not await held.rescore(self.helpers.rescore):
            raise Aborted
        if self.helpers.judge is not None and environment.steps and (broken is None or broken.kind == TOO_LONG):
            flags = await self.helpers.judge(question, environment.steps, held.worth)
            if flags is not None:
                held.flag(flags)
        held.write()
        if broken is not None:
            raise broken

    async def generate(self, prompt: np.ndarray, role: Role, sampling: SamplingSettings | None = None) -> Completion:
        """One response to int32 prompt ids. Raises EpisodeFailure where the prompt leaves no room, Aborted."""
        try:
            completion = await self.engine.generate(prompt, sampling or self.sampling)
        except PromptTooLong as error:
            raise EpisodeFailure(TOO_LONG, str(error)) from None
        if completion.stop is Stop.ABORTED:
            raise Aborted
        self.count(role, len(completion.ids))
        return completion


Play = Callable[[Stage], Awaitable[None]]
PlayEpisode = Callable[[Stage, Playing, int], Awaitable[None]]


def find(name: str) -> Play:
    """The rollout of that name. Raises SettingError."""
    return named.function(SETTING, name, NAMES, "play")


def stated(settings: Rollout) -> Rollout:
    """The settings with the facts that a rollout of the user's own states; those of a known one hold theirs. Imports
    the user's module. Raises SettingError."""
    return settings.stating(SETTING) if isinstance(settings, OwnRollout) else settings
