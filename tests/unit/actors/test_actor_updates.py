"""An actor brings its engine to the newest weights: what came meanwhile is held once, and none that comes is missed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.actor import Actor
from actors.contract import Orders, Report
from actors.transports import Superseded
from protocols.checksum import Sums
from protocols.weights import Probe, WeightRef


def weights(version: int) -> WeightRef:
    return WeightRef(version, 1, Sums(), (), Probe((), (), 1.0))


class Updated(Actor):
    """An actor whose engine starts when it is let, and that notes the versions which reach its engine."""

    def __init__(self) -> None:
        spec: Any = SimpleNamespace(version=None, actors=SimpleNamespace(probe_tolerance=1.0, silence_s=60.0))
        super().__init__(spec, "actor-0", None)
        self.gate, self.tried, self.held = asyncio.Event(), [], 0
        self.while_loading: dict[int, list[int]] = {}

    async def _build(self) -> Any:
        await self.gate.wait()
        return SimpleNamespace(engine=SimpleNamespace(running=0, error=None), producer=SimpleNamespace(alive=True))

    async def _try(self, ref: WeightRef) -> float:
        self.tried.append(ref.version)
        for version in self.while_loading.pop(ref.version, ()):
            await self.exchange(Orders(weights=weights(version)))
            self.held = max(self.held, len(self._announced))
        return 0.0


async def settled(actor: Updated) -> Report:
    await asyncio.gather(*actor._tasks)
    return await actor.exchange(Orders())


def test_only_the_newest_of_what_was_announced_while_it_started_is_held_and_loaded():
    async def run() -> Report:
        actor = Updated()
        for version in range(1, 2001):  # a start takes minutes, and each of these keeps its bytes in the object store
            await actor.exchange(Orders(weights=weights(version)))
        assert len(actor._announced) == 1
        actor.gate.set()
        report = await settled(actor)
        assert actor.tried == [2000]
        return report

    assert asyncio.run(run()).version == 2000


def test_weights_that_come_while_others_load_are_loaded_next_and_the_same_ones_once():
    async def run() -> Report:
        actor = Updated()
        actor.gate.set()
        actor.while_loading = {1: [1, 1, 2, 3], 3: [3]}
        await actor.exchange(Orders(weights=weights(1)))
        report = await settled(actor)
        assert actor.tried == [1, 3] and actor.held == 1
        return report

    assert asyncio.run(run()).version == 3


@pytest.mark.parametrize("turns", range(6))
def test_weights_that_come_at_any_moment_around_the_end_of_an_update_are_loaded(turns):
    async def run() -> list[int]:
        actor = Updated()
        actor.gate.set()
        await actor.exchange(Orders(weights=weights(1)))
        for _ in range(turns):
            await asyncio.sleep(0)  # one turn of the event loop
        await actor.exchange(Orders(weights=weights(2)))
        report = await settled(actor)
        assert report.version == 2
        return actor.tried

    assert asyncio.run(run())[-1] == 2


def test_a_trial_that_is_to_be_had_no_more_is_tried_again_with_the_next_weights():
    async def run() -> Report:
        actor = Updated()
        actor.gate.set()
        gone, there = actor._try, [False]

        async def tried(ref: WeightRef) -> float:
            if not there[0]:
                raise Superseded("its learner has died")
            return await gone(ref)

        actor._try = tried  # pyright: ignore[reportAttributeAccessIssue]
        await actor.exchange(Orders(weights=weights(3), trial=weights(-1)))
        assert (await settled(actor)).state == "ready" and not actor.tried
        there[0] = True
        await actor.exchange(Orders(weights=weights(1_000_002), trial=weights(-1)))
        report = await settled(actor)
        assert actor.tried == [-1, 1_000_002]
        return report

    assert asyncio.run(run()).version == 1_000_002
