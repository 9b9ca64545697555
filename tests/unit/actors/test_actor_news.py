"""An actor that is given time to report does so when it has something to say, or other orders come, and never later
than that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from actors.actor import Actor
from actors.contract import Orders, Report
from protocols.turns import Lease

LONG_S = 600.0


class Told(Actor):
    """An actor whose engine starts when it is let, and whose groups end when they are let."""

    def __init__(self) -> None:
        spec: Any = SimpleNamespace(version=3, actors=SimpleNamespace(lease_s=60.0))
        super().__init__(spec, "actor-0", None)
        self.gate, self.ends = asyncio.Event(), asyncio.Event()

    async def _build(self) -> Any:
        await self.gate.wait()
        return SimpleNamespace(engine=SimpleNamespace(running=0, error=None), producer=SimpleNamespace(alive=True))

    async def _play_group(self, lease: Lease) -> None:
        await self.ends.wait()
        self._playing -= 1
        self._abandon(lease, "it ends")


def lease(n: int) -> Lease:
    return Lease(bytes([n]) * 16, 0, n, {"id": str(n)}, 0)


def test_the_start_and_the_end_of_a_group_are_told_at_once():
    async def run() -> list[Report]:
        actor = Told()
        asyncio.get_running_loop().call_later(0.01, actor.gate.set)
        started = await asyncio.wait_for(actor.exchange(Orders(wait_s=LONG_S)), 60)
        asyncio.get_running_loop().call_later(0.01, actor.ends.set)
        ended = await asyncio.wait_for(actor.exchange(Orders((lease(1), lease(2)), wait_s=LONG_S)), 60)
        return [started, ended]

    started, ended = asyncio.run(run())
    assert (started.state, started.version) == ("ready", 3)
    assert [group[0] for group, _, _ in ended.abandoned] and ended.playing < 2


def test_what_ended_between_two_calls_is_told_without_a_wait_and_no_news_after_the_limit():
    async def run() -> tuple[Report, Report]:
        actor = Told()
        actor.gate.set()
        actor.ends.set()
        await actor.exchange(Orders((lease(1),)))
        await asyncio.gather(*actor._tasks)
        found = await asyncio.wait_for(actor.exchange(Orders(wait_s=LONG_S)), 60)
        return found, await asyncio.wait_for(actor.exchange(Orders(wait_s=0.01)), 60)

    found, nothing = asyncio.run(run())
    assert len(found.abandoned) == 1 and not nothing.abandoned and nothing.state == "ready"


def test_a_call_that_waits_is_answered_when_the_next_one_comes_which_then_waits_in_its_place():
    async def run() -> tuple[Report, Report]:
        actor = Told()
        actor.gate.set()
        await asyncio.wait_for(actor.exchange(Orders(wait_s=LONG_S)), 60)
        first = asyncio.ensure_future(actor.exchange(Orders(wait_s=LONG_S)))
        await asyncio.sleep(0)  # it begins
        second = asyncio.ensure_future(actor.exchange(Orders((lease(1),), wait_s=LONG_S)))
        answered = await asyncio.wait_for(first, 60)
        assert not second.done()
        actor.ends.set()
        return answered, await asyncio.wait_for(second, 60)

    answered, ended = asyncio.run(run())
    assert (answered.playing, answered.abandoned) == (1, []) and len(ended.abandoned) == 1
