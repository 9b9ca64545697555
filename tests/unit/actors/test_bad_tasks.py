"""A task that misbehaves costs its own episode: in an evaluation no other task, in training no lease and no actor."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from support.rollout_house import Speaker
from support.waiting import deadline_s

from actors import actor as actor_module
from actors.actor import Actor, Parts
from actors.config import ActorSettings, MixedEnvironment, SamplingSettings
from actors.contract import Spec
from actors.environments.base import TextEnvironment
from actors.mixture import Pools
from actors.rendering import Renderer
from actors.rollout_config import ActSettings, Rollout
from protocols.turns import Lease, Role, Turn
from redraft.models.make import build_tokenizer

TOKENIZER = build_tokenizer("characters", 256)


class Env(TextEnvironment):
    """Does at the third task what `bad` does; each other task is three actions long."""

    release = threading.Event()

    def __init__(self, bad: str = "none", blocking: bool = True):
        super().__init__()
        self.bad, self.blocking = bad, blocking  # pyright: ignore[reportAttributeAccessIssue]  of this one alone

    @classmethod
    def tasks(cls, data, split):
        return []

    def start(self, task):
        return "q\n"

    def act(self, text):
        odd = self.task["id"] == "2" and len(self._actions) == 2
        if odd and self.bad == "waits":
            self.release.wait(deadline_s(30))
        if odd and self.bad == "exits":
            raise SystemExit(3)
        reward = None if odd and self.bad == "none" else 1.0
        said = {"surrogate": "\ud800", "unspelled": "Eé"}.get(self.bad, "more\n") if odd else "more\n"
        return said, reward, len(self._actions) == 3, False, {"success": True, "answer": "a"}


class Producer:
    alive = True

    def __init__(self) -> None:
        self.items: list = []

    async def room(self, shard: str, limit: float) -> None: ...

    def add(self, item, lease, spread) -> Future:
        self.items.append(item)
        kept: Future = Future()
        kept.set_result(None)
        return kept


def actor_of(make, rollout: Rollout, lease_s: float = 600.0) -> tuple[Actor, Producer]:
    """An actor that has started, with an engine that answers "x"."""
    mixture = (MixedEnvironment(name="signs", time_limit_s=600.0, threads=8),)
    settings: Any = (
        mixture,
        rollout,
        SamplingSettings(max_tokens=4),
        ActorSettings(lease_s=lease_s),
    )
    actor = Actor(Spec("run", "model", "float32", 0, *settings, None), "actor-0", None)
    engine: Any = Speaker(TOKENIZER, lambda prompt: "x")
    producer: Any = Producer()
    lent = Pools(mixture, make=lambda settings: make())
    actor._parts.set_result(Parts(engine, Renderer(TOKENIZER), frozenset(), lent, producer, None))
    actor._report.state = "ready"
    return actor, producer


def evaluated(bad: str, lease_s: float = 600.0) -> list[list[Turn]]:
    settings = ActSettings(turns=5)
    tasks = [{"id": str(number)} for number in range(5)]

    async def run() -> list[list[Turn]]:
        actor, _ = actor_of(lambda: Env(bad), settings, lease_s)
        return await actor.evaluate(tasks, settings, SamplingSettings(max_tokens=4), 0)

    return asyncio.run(run())


@pytest.mark.parametrize("bad", ["none", "exits", "surrogate"])
def test_one_test_task_that_misbehaves_is_an_error_of_its_own_and_all_others_are_played(bad):
    played = evaluated(bad)
    assert [len(turns) for turns in played] == [3, 3, 2, 3, 3]
    assert [turn.role for turn in played[2]] == [Role.ACTION, Role.ERROR] and played[2][-1].extra["error"]


def test_a_test_task_that_takes_longer_than_its_lease_is_an_error_of_its_own():
    try:
        played = evaluated("waits", lease_s=3.0)
    finally:
        Env.release.set()
    assert [len(turns) for turns in played] == [3, 3, 2, 3, 3]
    assert "actors.lease_s=3" in played[2][-1].extra["error"]


def test_an_observation_that_the_tokenizer_cannot_spell_costs_its_own_episode():
    played = evaluated("unspelled")
    assert [turn.role for turn in played[2]] == [Role.ACTION, Role.ACTION, Role.ERROR]
    assert [turn.role for turns in played[:2] + played[3:] for turn in turns] == [Role.ACTION] * 12


def test_a_question_that_the_tokenizer_cannot_spell_costs_its_own_lease_alone(monkeypatch):
    monkeypatch.setattr(actor_module, "BROKEN_PAUSE_S", 0.0)

    class Asks(Env):
        def start(self, task):
            return "É\n"

    async def run() -> None:
        actor, producer = actor_of(Asks, ActSettings(turns=2))
        actor._playing = 1
        await actor._play(Lease(bytes(16), 0, 0, {"id": "t"}, 0))
        assert "cannot spell 'É" in producer.items[0].extra["error"] and not actor._report.fatal

    asyncio.run(run())


class Panic(BaseException):
    pass


@pytest.mark.parametrize("blocking", [True, False], ids=["in a thread", "directly"])
@pytest.mark.parametrize("raised", [ValueError("x"), asyncio.CancelledError(), Panic("rust"), SystemExit(1)], ids=repr)
def test_a_lease_whose_environment_raises_anything_is_closed(raised, blocking, monkeypatch):
    monkeypatch.setattr(actor_module, "BROKEN_PAUSE_S", 0.0)

    class Throws(Env):
        def act(self, text):
            raise raised

    async def run() -> Actor:
        actor, producer = actor_of(lambda: Throws(blocking=blocking), ActSettings(turns=2))
        actor._playing = 1
        await actor._play(Lease(bytes(16), 0, 0, {"id": "t"}, 0))
        assert [getattr(item, "role", None) for item in producer.items] == [Role.ERROR, None]
        return actor

    report = asyncio.run(run())._report
    assert len(report.closed) == 1 and not report.abandoned


def test_an_engine_that_stops_amid_an_evaluation_loses_the_share_and_marks_no_task_as_broken():
    async def run() -> None:
        actor, _ = actor_of(Env, ActSettings(turns=2))
        engine: Any = actor._made.engine

        async def dies(prompt, sampling):
            engine.error = RuntimeError("its core ended")
            raise engine.error

        engine.generate = dies
        await actor.evaluate([{"id": "0"}], ActSettings(turns=2), SamplingSettings(max_tokens=4), 0)

    with pytest.raises(RuntimeError, match="its core ended"):
        asyncio.run(run())
