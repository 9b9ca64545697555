"""How a version comes to the workers of an engine by broadcast from the learner: see learner.weights.collective."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict

from actors.engines import Workers
from protocols.broadcast import Seat
from protocols.weights import WeightRef

log = logging.getLogger("redraft.weights")
POLL_S = 0.02
DROP, RECEIVE, RECEIVED = "redraft_drop", "redraft_receive", "redraft_received"
DROP_S = 5.0
"""Longest wait for workers to let go of what they hold: one that hangs is found out by its update's time limit."""


class Receiver:
    """Of one actor."""

    def __init__(self, reader: str):
        self._reader = reader
        self._group = 0  # of which the engine's workers are

    async def received(self, ref: WeightRef, engine: Workers, limit_s: float) -> bool:
        """Whether the version has come: the engine's workers then hold it. It has to come another way where the learner
        does not broadcast it, or where it has not come within `limit_s`, which is logged."""
        from ray.exceptions import RayActorError

        try:
            async with asyncio.timeout(limit_s):
                while (seat := await self._seat(ref, engine)) is None:
                    await asyncio.sleep(POLL_S)
                if not isinstance(seat, Seat):
                    return False
                self._group = 0
                await engine.ask(RECEIVE, asdict(seat))
                while None in (states := await engine.ask(RECEIVED)):
                    await asyncio.sleep(POLL_S)
        except RayActorError:
            return False  # the learner's process has ended
        except TimeoutError:
            states = [f"not within {limit_s:g} s"]
            await dropped(engine)
        else:
            if not any(states):
                self._group = seat.group
                return True
        log.warning("version %d did not come by broadcast; it comes another way: %s", ref.version, max(states))
        return False

    async def _seat(self, ref: WeightRef, engine: Workers) -> Seat | str | None:
        return await ref.source.seat.remote(ref.version, self._reader, engine.workers, self._group)


async def dropped(engine: Workers) -> None:
    """Has the workers let go of the version that they hold, or are about to."""
    try:
        async with asyncio.timeout(DROP_S):
            await engine.ask(DROP)
    except TimeoutError:
        log.warning("the engine's workers did not let go of a version within %g s", DROP_S)
