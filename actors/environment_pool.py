"""Environments as a rollout meets them: asynchronous, with a time limit, and never the end of the actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors import messages
from actors.messages import Question
from protocols import metrics

if TYPE_CHECKING:
    from actors.environments.base import Hints


class EpisodeFailure(Exception):
    """This episode cannot go on; the group can. `kind` is a metric label, one of KINDS."""

    KINDS = ("raised", "hung", "too_long", "teacher")

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the environment made of one answer. `parsed`: whether it found one in the text; None where it is silent."""

    reward: float
    success: bool
    answer: str | None
    terminated: bool
    truncated: bool
    seconds: float
    refused: bool = False
    parsed: bool | None = None


def parsed_in(info: dict) -> bool | None:
    """Whether an environment found an answer in a text: it says which, or that it is right. None where its `info` has
    no `answer`, as that of one that parses nothing."""
    return bool(info["answer"]) or bool(info.get("success", False)) if "answer" in info else None


class Playing:
    """One environment in one episode. `observation` is what it said last: a question at first, a text after a step."""

    def __init__(self, environment, call: Callable):
        self._environment, self._call = environment, call
        self.observation: Question = ""

    async def reset(self, task: dict, seed: int) -> None:
        """Begins the task. Raises EpisodeFailure when the environment raises, or its observation is not a question."""
        observation, _ = await self._call(self._environment.reset, seed=seed, options={"task": task})
        try:
            self.observation = messages.checked(observation)
        except ValueError as error:
            raise EpisodeFailure("raised", str(error)) from None

    async def step(self, text: str) -> Outcome:
        """Acts. Raises EpisodeFailure when the environment raises or takes longer than its limit."""
        began = time.monotonic()
        self.observation, reward, terminated, truncated, info = await self._call(self._environment.step, text)
        seconds = time.monotonic() - began
        metrics.ENVIRONMENT_SECONDS.observe(seconds)
        said = info.get("success", False), info.get("answer")
        parsed = parsed_in(info)
        return Outcome(float(reward), *said, terminated, truncated, seconds, info.get("refused", False), parsed)

    async def snapshot(self) -> Any:
        """The state of the episode, for `restore` here or in another environment."""
        return await self._call(self._environment.snapshot)

    async def restore(self, state: Any) -> None:
        await self._call(self._environment.restore, state)

    async def hint(self) -> str | None:
        """What leads to the right answer (environments that have hints); None where nothing does."""
        told: Hints = self._environment
        return await self._call(told.hint)

    @property
    def itself(self) -> Any:
        """The environment, for what takes no time."""
        return self._environment


class EnvironmentPool:
    """Lends environments to episodes. `make` builds one; those that failed are thrown away, the others used again.

    An environment whose class says `blocking = False` is called directly; others run in threads, since they may
    sleep, compute or hang. A hung thread cannot be stopped: it is left behind with its pool, and a new one begins.
    """

    def __init__(self, make: Callable[[], object], time_limit_s: float, threads: int):
        self._make, self._limit, self._at_once = make, time_limit_s, threads
        for kind in EpisodeFailure.KINDS:
            metrics.ENVIRONMENT_ERRORS.labels(kind=kind)
        self._idle: list = []
        self._threads = ThreadPoolExecutor(threads, "environment")
        self._free = asyncio.Semaphore(threads)  # so that the limit counts from a step's start, not from its queueing

    @asynccontextmanager
    async def one(self, task: dict, seed: int) -> AsyncIterator[Playing]:
        environment = self._idle.pop() if self._idle else await self._directly(self._make)
        call = self._in_thread if environment.blocking else self._directly
        playing = Playing(environment, call)
        await playing.reset(task, seed)
        yield playing
        self._idle.append(environment)  # not reached after a failure

    async def _directly(self, function: Callable, *arguments, **named):
        try:
            return function(*arguments, **named)
        except Exception as error:
            raise EpisodeFailure("raised", f"{type(error).__name__}: {error}") from error

    async def _in_thread(self, function: Callable, *arguments, **named):
        async with self._free:
            loop, threads = asyncio.get_running_loop(), self._threads
            work = loop.run_in_executor(threads, lambda: function(*arguments, **named))
            try:
                return await asyncio.wait_for(work, self._limit)
            except TimeoutError:
                if threads is self._threads:
                    self._threads = ThreadPoolExecutor(self._at_once, "environment")
                    threads.shutdown(wait=False)
                message = f"no answer within environment.time_limit_s={self._limit:g}"
                raise EpisodeFailure("hung", message) from None
            except Exception as error:
                raise EpisodeFailure("raised", f"{type(error).__name__}: {error}") from error
