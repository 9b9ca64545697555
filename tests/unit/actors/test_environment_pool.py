"""Environments that raise or hang end their episode and never the actor; rollouts write true turns."""

import asyncio
import threading

import numpy as np
import pytest
from support.rollout_house import House
from support.waiting import deadline_s

from actors import environments
from actors.config import DataSettings, EngineSettings, EnvironmentSettings, SamplingSettings
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


def test_an_unknown_environment_is_refused_with_the_known_names():
    with pytest.raises(Exception, match="environment.name.*signs"):
        environments.make(EnvironmentSettings(name="chess"))
