"""Environments that raise or hang end their episode and never the actor; rollouts write true turns."""

import asyncio
import threading

import numpy as np
import pytest
from support.rollout_house import House
from support.waiting import deadline_s

from actors import environments
from actors.config import DataSettings, EngineSettings, EnvironmentSettings, SamplingSettings
from actors.door import EpisodeFailure
from actors.engines.scripted import ScriptedEngine
from actors.environment_pool import EnvironmentPool
from actors.environments.base import TextEnvironment
from actors.rollout_config import AttemptSettings, RetrySettings, Rollout
from protocols.errors import SettingError
from protocols.turns import Close, Role
from redraft.models.make import build_tokenizer


class Raises(TextEnvironment):
    @classmethod
    def tasks(cls, data, split):
        return [{"id": "one"}]

    def start(self, task):
        return "say\n"

    def act(self, text):
        raise ArithmeticError("broken verifier")


class Hangs(Raises):
    release = threading.Event()

    def act(self, text):
        self.release.wait(deadline_s(20))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = build_tokenizer("characters", 256)
    made.save_pretrained(folder)
    return folder, made


def play(tokenizer, environment, settings: Rollout, limit_s=5.0, max_tokens=9):
    """The turns of one group, played with the scripted engine; the last item is the close row."""
    folder, made = tokenizer
    engine = ScriptedEngine(folder, EngineSettings(name="scripted"), seed=1, version=4)
    task = environments.tasks(EnvironmentSettings(name="signs"), DataSettings(), "test")[0]
    return House(settings, engine, environment, task, tokenizer=made, limit_s=limit_s, max_tokens=max_tokens).items


def signs():
    return environments.make(EnvironmentSettings(name="signs", feedback="residual"))


def test_a_verifier_that_raises_ends_its_episode_and_not_the_group(tokenizer):
    error, close = play(tokenizer, Raises, AttemptSettings())
    assert error.role is Role.ERROR and "broken verifier" in error.extra["error"] and len(error.response) == 0
    assert isinstance(close, Close) and close.turns == 1


def test_an_environment_that_hangs_is_left_behind_within_its_limit(tokenizer):
    try:
        error, close = play(tokenizer, Hangs, AttemptSettings(), limit_s=0.2)
    finally:
        Hangs.release.set()
    assert error.role is Role.ERROR and "environment.time_limit_s=0.2" in error.extra["error"]
    assert close.turns == 1


class Meets(Raises):
    together = threading.Barrier(40)

    def act(self, text):
        self.together.wait(deadline_s(5))
        return "met\n", 1.0, True, False, {}


def test_so_many_steps_of_blocking_environments_run_at_once_as_the_recipe_says():
    lent = EnvironmentPool(Meets, 10.0, threads=40)

    async def one(seed: int) -> float:
        async with lent.one({"id": "one"}, seed) as environment:
            return (await environment.step("here")).reward

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(one, range(40)))

    assert asyncio.run(all_of_them()) == [1.0] * 40


def test_an_environment_that_cannot_be_made_ends_its_episode_and_not_the_group(tokenizer):
    def broken():
        raise OSError("no simulator")

    error, close = play(tokenizer, broken, AttemptSettings())
    assert error.role is Role.ERROR and "no simulator" in error.extra["error"] and close.turns == 1


class Unfinished(Raises):
    act = TextEnvironment.act


def test_an_environment_that_lacks_a_method_is_refused_by_its_name():
    with pytest.raises(SettingError, match="lacks act"):
        environments.make(EnvironmentSettings(name=f"{__name__}:Unfinished"))


def test_retry_writes_a_path_whose_tokens_are_what_the_engine_saw(tokenizer):
    folder, made = tokenizer
    *turns, close = play(tokenizer, signs, RetrySettings(turns=3, reflect=True))
    assert [turn.role.name for turn in turns] == ["ATTEMPT", "REFLECTION", "ATTEMPT", "REFLECTION", "ATTEMPT"]
    assert [turn.index for turn in turns] == [0, 1, 1, 2, 2]
    assert [turn.parent for turn in turns] == [-1, 0, 1, 2, 3] and close.turns == 5
    engine = ScriptedEngine(folder, EngineSettings(name="scripted"), seed=1, version=4)
    context = np.empty(0, np.int32)
    for turn in turns:  # the scripted engine answers the same context in the same way
        context = np.concatenate((context, turn.prompt))
        again = asyncio.run(engine.generate(context, SamplingSettings(max_tokens=9)))
        assert again.ids.tolist() == turn.response.tolist() and turn.versions == ((0, 4),)
        context = np.concatenate((context, turn.response))


def test_a_reflection_carries_the_reward_of_the_attempt_that_it_led_to(tokenizer):
    *turns, _ = play(tokenizer, signs, RetrySettings(turns=3, reflect=True))
    for reflection, attempt in zip(turns[1::2], turns[2::2], strict=True):
        assert reflection.reward == attempt.reward and reflection.extra == attempt.extra


def test_a_group_holds_its_episodes_side_by_side(tokenizer):
    *turns, close = play(tokenizer, signs, AttemptSettings(episodes=3))
    assert [turn.episode for turn in turns] == [0, 1, 2] and all(turn.parent == -1 for turn in turns)
    assert close.turns == 3


class Panic(BaseException):
    """What the panic of a compiled extension is."""


RAISED = (ValueError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), Panic("p"), GeneratorExit())


@pytest.mark.parametrize("blocking", [True, False], ids=["in a thread", "directly"])
@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_an_environment_raises_ends_its_episode_and_nothing_else(tokenizer, raised, blocking):
    class Throws(Raises):
        def act(self, text):
            raise raised

    Throws.blocking = blocking
    error, close = play(tokenizer, Throws, AttemptSettings())
    assert error.role is Role.ERROR and type(raised).__name__ in error.extra["error"] and close.turns == 1


class Counted(Raises):
    """Counts how many of it are open, and the most that were."""

    open = most = 0

    def __init__(self):
        super().__init__()
        self._count(1)

    @classmethod
    def _count(cls, change: int) -> None:
        with cls.lock:
            cls.open += change
            cls.most = max(cls.most, cls.open)

    lock = threading.Lock()

    def act(self, text):
        if text == "bad":
            raise ValueError("x")
        return "more\n", 0.0, False, False, {}

    def close(self):
        self._count(-1)


@pytest.fixture
def counted():
    class Fresh(Counted):
        pass

    return Fresh


async def visit(lent: EnvironmentPool, text: str = "good") -> None:
    try:
        async with lent.one({"id": "one"}, 0) as environment:
            await environment.step(text)
    except EpisodeFailure:
        pass


def test_an_environment_that_failed_is_closed(counted):
    async def failures() -> None:
        lent = EnvironmentPool(counted, 5.0, 4)
        for _ in range(5):
            await visit(lent, "bad")

    asyncio.run(failures())
    assert counted.open == 0 and counted.most == 1


def test_at_the_end_every_environment_is_closed_also_one_that_is_played(counted):
    async def end() -> None:
        lent = EnvironmentPool(counted, 5.0, 4)
        await asyncio.gather(*(visit(lent) for _ in range(3)))
        async with lent.one({"id": "one"}, 0):
            assert counted.open > 0
            await lent.close()

    asyncio.run(end())
    assert counted.open == 0


def test_no_more_environments_are_alive_than_the_recipe_says_and_others_wait(counted):
    async def many() -> None:
        lent = EnvironmentPool(counted, 5.0, 8, instances=2)
        await asyncio.gather(*(visit(lent) for _ in range(10)))

    asyncio.run(many())
    assert counted.most == 2


def test_an_environment_is_closed_after_so_many_episodes_as_the_recipe_says():
    made = []

    class Recycled(Counted):
        def __init__(self):
            super().__init__()
            made.append(self)

    async def some() -> None:
        lent = EnvironmentPool(Recycled, 5.0, 4, recycle_after=2)
        for _ in range(6):
            await visit(lent)

    asyncio.run(some())
    assert len(made) == 3 and Recycled.open == 0


def test_groups_that_need_more_environments_than_are_free_wait_in_order_and_none_for_ever(counted):
    async def groups() -> list[int]:
        lent, begun = EnvironmentPool(counted, 5.0, 8, instances=4), []

        async def group(number: int, episodes: int) -> None:
            async with lent.room(episodes):
                begun.append(number)
                await asyncio.gather(*(visit(lent) for _ in range(episodes)))

        async with asyncio.timeout(deadline_s(20)):
            await asyncio.gather(*(group(number, episodes) for number, episodes in enumerate((3, 3, 8, 1, 4, 2))))
        return begun

    assert asyncio.run(groups()) == list(range(6)) and counted.most <= 4


def test_an_environment_that_takes_long_to_be_made_holds_up_nobody_and_is_closed_when_it_comes_too_late():
    release, made, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(Raises):
        def __init__(self):
            release.wait(deadline_s(20))
            super().__init__()
            made.set()

        def close(self):
            closed.set()

    async def one() -> str:
        lent = EnvironmentPool(Slow, 0.05, 2)
        with pytest.raises(EpisodeFailure, match=r"environment\.time_limit_s=0\.05") as failure:
            async with lent.one({"id": "one"}, 0):
                pass
        release.set()  # only now: the event loop was never held up by the making
        return failure.value.kind

    assert asyncio.run(one()) == "hung"
    assert made.wait(deadline_s(20)) and closed.wait(deadline_s(20))


def test_an_environment_whose_episode_was_given_up_while_it_was_made_is_closed():
    release, making, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(Raises):
        def __init__(self):
            making.set()
            release.wait(deadline_s(20))
            super().__init__()

        def close(self):
            closed.set()

    async def given_up() -> None:
        lent = EnvironmentPool(Slow, deadline_s(20), 1)
        playing = asyncio.create_task(visit(lent))
        assert await asyncio.to_thread(making.wait, deadline_s(20))
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        assert await lent._in_thread(lambda: "free") == "free", "the thread that makes it is in no one's way"
        release.set()

    asyncio.run(given_up())
    assert closed.wait(deadline_s(20))


def test_an_unknown_environment_is_refused_with_the_known_names():
    with pytest.raises(Exception, match="environment.name.*signs"):
        environments.make(EnvironmentSettings(name="chess"))
