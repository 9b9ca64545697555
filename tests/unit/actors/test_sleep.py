"""An engine sleeps when it is told to and nothing needs it, and is awake before anything does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.actor import Actor
from actors.contract import Orders
from actors.rest import Rest
from protocols.checksum import Sums
from protocols.weights import Probe, WeightRef


class Engine:
    """Notes what is asked of it; what it is asked takes until `go`."""

    running, error = 0, None

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.broken = False

    async def sleep(self) -> None:
        await self.go.wait()
        if self.broken:
            raise RuntimeError("no sleep mode here")
        self.done.append("asleep")

    async def wake(self) -> None:
        self.done.append("awake")


class Sleeping(Actor):
    """An actor whose engine is there at once, and notes the versions that are loaded."""

    def __init__(self) -> None:
        spec: Any = SimpleNamespace(version=None, actors=SimpleNamespace(probe_tolerance=1.0, silence_s=60.0))
        super().__init__(spec, "actor-0", None)
        self.engine = Engine()

    async def _build(self) -> Any:
        return SimpleNamespace(engine=self.engine, producer=SimpleNamespace(alive=True))

    async def _try(self, ref: WeightRef) -> float:
        self.engine.done.append(f"version {ref.version}")
        return 0.0

    async def told(self, **orders: Any):
        """What it reports once orders are carried out."""
        await self.exchange(Orders(**orders))
        await asyncio.gather(*self._tasks)
        return await self.exchange(Orders())


def weights(version: int) -> WeightRef:
    return WeightRef(version, 1, Sums(), (), Probe((), (), 1.0))


def test_it_sleeps_when_told_to_says_so_and_is_awake_before_new_weights_are_loaded():
    async def run() -> list[str]:
        actor = Sleeping()
        assert not (await actor.told(weights=weights(1))).asleep
        for _ in range(2):
            assert (await actor.told(sleep=True)).asleep
        report = await actor.told(weights=weights(2))
        assert not report.asleep and report.version == 2
        return actor.engine.done

    assert asyncio.run(run()) == ["version 1", "asleep", "awake", "version 2"]


@pytest.mark.parametrize("needed", ["_playing", "_evaluating", "_updating"])
def test_an_engine_that_is_needed_does_not_sleep(needed):
    async def run() -> None:
        actor = Sleeping()
        await actor.told(weights=weights(1))
        setattr(actor, needed, 1)
        assert not (await actor.told(sleep=True)).asleep
        setattr(actor, needed, 0)
        assert (await actor.told(sleep=True)).asleep

    asyncio.run(run())


def test_what_needs_an_engine_that_falls_asleep_waits_and_wakes_it():
    async def run() -> list[str]:
        engine = Engine()
        engine.go.clear()
        rest = Rest(lambda: engine, lambda: False)
        falling = asyncio.ensure_future(rest.begin())
        await asyncio.sleep(0)
        again, needing = asyncio.ensure_future(rest.begin()), asyncio.ensure_future(rest.end())
        await again
        assert not needing.done() and not rest.asleep
        engine.go.set()
        await asyncio.gather(falling, needing)
        assert not rest.asleep
        return engine.done

    assert asyncio.run(run()) == ["asleep", "awake"]


def test_an_actor_whose_engine_cannot_sleep_has_failed_and_says_why():
    async def run():
        actor = Sleeping()
        await actor.told(weights=weights(1))
        actor.engine.broken = True
        return await actor.told(sleep=True)

    report = asyncio.run(run())
    assert report.state == "failed" and report.error == "cannot put its engine to sleep: no sleep mode here"
