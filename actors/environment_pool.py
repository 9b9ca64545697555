"""Environments as a rollout meets them: asynchronous, with a time limit, and never the end of the actor.

EnvironmentPool.one --makes or takes--> environment --reset, step--> actors/door.py --> Playing, Outcome
        `-- closes it after a failure, after `recycle_after` episodes, and at the actor's end
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from actors import door, experience
from actors.door import EpisodeFailure, Outcome
from actors.engines.teacher import TeacherBudget
from actors.environments.base import Played, Revises
from actors.environments.killable import START_S
from actors.messages import Question, asked, results
from actors.tools import Offered, Tool, calls
from actors.tools.calls import Call
from actors.tools.toolbox import Toolbox
from protocols import metrics
from protocols.errors import SettingError, named

log = logging.getLogger("redraft.environments")
CAUSES = 1000  # of failures to close that are logged
OWN_LIMIT_S = START_S + 2.0  # beyond the limit, for a call that ends by its own clock, which may start a process first


class Playing:
    """One environment in one episode. `observation` is what it said last: a question at first, a text after a step, or
    what tools answered. `tools` are what a dialogue must be told of; None where there are none."""

    def __init__(self, environment, call: Callable, tools: Sequence[Tool] = (), in_thread: Callable | None = None):
        self._environment, self._call, self._in_thread = environment, call, in_thread or call
        self._name = type(environment).__name__
        self._tools = {tool.name: tool for tool in tools}
        self._own = environment.own_tools
        self.tools = Offered.of(tool.schema for tool in [*self._own.values(), *tools])
        self.observation: Question = ""
        self.steps: list[tuple[str, str]] = []
        """What was done so far and what was said to it, also what `restore` has taken back."""

    @property
    def asks_once(self) -> bool:
        """Whether the first message that calls no tool is its end."""
        return self.tools is not None and not self._environment.many_actions

    async def reset(self, task: dict, seed: int) -> None:
        """Begins the task. This and all below raise EpisodeFailure when the environment raises, takes longer than its
        limit, or returns what the contract does not have."""
        returned = await self._call(self._environment.reset, seed=seed, options={"task": task})
        self.observation = door.question(self._name, returned)

    async def step(self, text: str) -> Outcome:
        """Acts: calls tools where there are any and the text calls them, else steps. With tools, a question that asks
        for one answer is over with what calls none."""
        began = time.monotonic()
        if self.tools is not None and (found := calls.find(text)):
            outcome = await self._use(found, began)
            self.steps.append((str(text), asked(self.observation)))
            return outcome
        returned = await self._call(self._environment.step, text)
        seconds = time.monotonic() - began
        metrics.ENVIRONMENT_SECONDS.observe(seconds)
        self.observation, outcome = door.outcome(self._name, returned, seconds)
        self.steps.append((str(text), self.observation))
        if self.asks_once:
            return replace(outcome, terminated=True)
        return outcome

    async def _use(self, found: Sequence[Call], began: float) -> Outcome:
        """Answers the calls of one message. One that cannot be made, or that a tool refuses, is an action refused."""
        answers = [await self._answer(call) for call in found]
        self.observation = results([text for text, _ in answers])
        seconds, refused = time.monotonic() - began, any(wrong for _, wrong in answers)
        metrics.ENVIRONMENT_SECONDS.observe(seconds)
        return Outcome(0.0, False, None, terminated=False, truncated=False, seconds=seconds, refused=refused)

    async def _answer(self, call: Call) -> tuple[str, bool]:
        """What the model hears of a call, and whether it is an error."""
        name, wrong = call.name, call.wrong
        if not wrong and name not in self._own and name not in self._tools:
            wrong = f"there is no tool {name!r}; there are: {', '.join([*self._own, *self._tools])}"
        if wrong:
            return door.tool(name, f"Error: {wrong}"), True
        if name in self._own:
            came = await self._call(self._environment.use, name, call.arguments)
        else:
            tool = self._tools[name]
            came = await self._in_thread(tool.run, call.arguments, what=f"tool {name}", limited=tool.limited)
        said = door.tool(name, came.value)
        return (f"Error: {said}" if came.refused else said), came.refused

    async def snapshot(self) -> Any:
        """The state of the episode, for `restore` here or in another environment."""
        return await self._call(self._environment.snapshot)

    async def restore(self, state: Any) -> None:
        await self._call(self._environment.restore, state)

    async def hint(self) -> str | None:
        """What leads to the right answer (environments that have hints); None where nothing does."""
        found = await self._call(self._environment.hint)
        return None if found is None else door.text(f"{self._name}.hint", found)

    async def revision(self, good: list[str], rng: Any) -> str | None:
        """The environment's own way to say that one was wrong; None where it has none."""
        if not isinstance(self._environment, Revises):
            return None
        return door.text(f"{self._name}.revision", await self._call(self._environment.revision, good, rng))

    async def lesson(self, task: dict, played: Sequence[Played]) -> list[str]:
        """What these episodes of the task have shown, as environments that teach say it: a text each."""
        found = await self._call(self._environment.lesson, task, played)
        return [experience.line(one) for one in door.lessons(f"{self._name}.lesson", found)]

    async def demonstrations(self, rng: Any, count: int, turns: int) -> list[list[tuple[str, bool]]]:
        """`count` dialogues of `turns` attempts, as environments that demonstrate give them."""
        found = await self._call(self._environment.demonstrations, rng, count, turns)
        return door.dialogues(f"{self._name}.demonstrations", found)


class Closes(Protocol):
    """What is closed at the end."""

    async def close(self) -> None: ...


Shared = TypeVar("Shared", bound=Closes)


@dataclass(slots=True, eq=False)
class Lent:
    """An environment of the pool, and how many episodes it has begun."""

    environment: Any
    episodes: int = 0


class EnvironmentPool:
    """Lends environments to episodes. `make` builds one; those that failed are closed, the others used again.

    An environment whose class says `blocking = False` is called directly; others are called in threads, since they may
    sleep, compute or hang, as all are made and closed. A hung thread cannot be stopped: it is left behind with its
    pool, and a new one begins. At most `instances` are alive at once (None: as many as there are episodes), and each is
    closed after `recycle_after` episodes (None: never). `toolbox` holds tools of the recipe, which all episodes share.
    """

    def __init__(
        self,
        make: Callable[[], object],
        time_limit_s: float,
        threads: int,
        instances: int | None = None,
        recycle_after: int | None = None,
        toolbox: Toolbox | None = None,
    ):
        self._toolbox = toolbox
        self._make, self._limit, self._at_once = make, time_limit_s, threads
        self._instances, self._recycle_after = instances or sys.maxsize, recycle_after or sys.maxsize
        for kind in EpisodeFailure.KINDS:
            metrics.ENVIRONMENT_ERRORS.labels(kind=kind)
        self._idle: list[Lent] = []
        self._alive: set[Lent] = set()
        self._threads = ThreadPoolExecutor(threads, "environment")
        self._free = asyncio.Semaphore(threads)  # so that the limit counts from a step's start, not from its queueing
        self._room, self._group_room = (asyncio.Semaphore(self._instances) for _ in range(2))
        self._line, self._making = asyncio.Lock(), asyncio.Lock()
        self._beside: dict[str, Any] = {}
        self._said: set[str] = set()

    @asynccontextmanager
    async def one(self, task: dict, seed: int) -> AsyncIterator[Playing]:
        """An environment that was reset to the task. Waits while `instances` others play."""
        async with self._room:
            lent = self._idle.pop() if self._idle else await self._made()
            lent.episodes += 1
            whole = False
            try:
                environment = lent.environment
                tools = await self._in_thread(self._toolbox.offered, limited=True) if self._toolbox else ()
                call = self._in_thread if environment.blocking else self._directly
                playing = Playing(environment, call, tools, self._in_thread)
                await playing.reset(task, seed)
                yield playing
                whole = True
            finally:
                if whole and lent.episodes < self._recycle_after:
                    self._idle.append(lent)
                else:
                    await self._close(lent)

    @asynccontextmanager
    async def room(self, episodes: int) -> AsyncIterator[None]:
        """Waits until a group of so many episodes at once can be played without waiting for the environments of
        others: so that no group's time runs while it cannot play. Groups go in the order in which they came."""
        async with AsyncExitStack() as held:
            async with self._line:
                for _ in range(min(episodes, self._instances)):
                    await held.enter_async_context(self._group_room)
            yield

    async def beside(self, name: str, make: Callable[[], Awaitable[Shared]]) -> Shared:
        """What episodes share beside their environments: made once, closed with the pool."""
        async with self._making:
            if name not in self._beside:
                self._beside[name] = await make()
        return self._beside[name]

    async def close(self) -> None:
        """Closes all environments, also those in which an episode is played. Each has its time limit for it."""
        self._idle.clear()
        await asyncio.gather(*map(self._close, list(self._alive)))
        await asyncio.gather(*(shared.close() for shared in self._beside.values()))
        if self._toolbox is not None:
            await asyncio.to_thread(self._toolbox.close)
        self._threads.shutdown(wait=False)

    async def _made(self) -> Lent:
        lent = Lent(await self._in_thread(self._equipped, late=_discard))
        self._alive.add(lent)
        return lent

    def _equipped(self) -> Any:
        """A new environment that has told its tools."""
        made: Any = self._make()
        try:
            made.own_tools  # noqa: B018  it keeps what it finds
        except BaseException:
            made.close()
            raise
        return made

    async def _close(self, lent: Lent) -> None:
        if lent not in self._alive:
            return
        self._alive.remove(lent)
        try:
            await asyncio.shield(self._in_thread(lent.environment.close))
        except EpisodeFailure as failure:
            metrics.ENVIRONMENT_ERRORS.labels(kind=failure.kind).inc()
            said = f"{type(lent.environment).__name__}.close failed: {failure}"
            if len(self._said) < CAUSES and said not in self._said:
                self._said.add(said)
                log.warning("%s; said once", said)

    async def _directly(self, function: Callable, *arguments, **named):
        return _result(*_guarded(function, *arguments, **named))

    async def _in_thread(
        self,
        function: Callable,
        *arguments,
        late: Callable[[Future], None] | None = None,
        what: str = "",
        limited: bool = False,
        **named,
    ):
        """`late` is told of a call that ended after its limit, or when nobody waited for it any more; `what` says whose
        it is, if not the environment's. One that is `limited` keeps to the limit itself, so that it can say and clear
        away what it waited for."""
        async with self._free:
            threads = self._threads
            work = threads.submit(_guarded, function, *arguments, **named)
            done = asyncio.wrap_future(work)
            try:
                return _result(*await asyncio.wait_for(done, self._limit + (OWN_LIMIT_S if limited else 0.0)))
            except TimeoutError:
                self._leave_behind(threads, work, late)
                raise door.hung(what, self._limit) from None
            except asyncio.CancelledError:
                if not work.cancel():  # a thread is at it
                    self._leave_behind(threads, work, late)
                raise

    def _leave_behind(self, threads: ThreadPoolExecutor, work: Future, late: Callable[[Future], None] | None) -> None:
        """Begins another pool, in which all threads are free."""
        if threads is self._threads:
            self._threads = ThreadPoolExecutor(self._at_once, "environment")
            threads.shutdown(wait=False)
        if late is not None:
            work.add_done_callback(late)


def _guarded(function: Callable, *arguments, **named) -> tuple[Any, BaseException | None]:
    """(result, None), or (None, what was raised): an environment may raise SystemExit, asyncio's CancelledError or the
    panic of an extension, none of which may end a thread, a task or the actor."""
    try:
        return function(*arguments, **named), None
    except BaseException as error:
        return None, error


def _result(result: Any, error: BaseException | None) -> Any:
    if isinstance(error, EpisodeFailure | SettingError | TeacherBudget):  # the last two end more than an episode
        raise error
    if error is not None:
        said = named(error)
        raise EpisodeFailure("raised", said) from error
    return result


def _discard(work: Future) -> None:
    """Closes an environment that was made too late for its episode."""
    made = None if work.cancelled() else work.result()[0]
    if made is not None:
        _guarded(made.close)
