"""A learner whose broadcasts can be halted in the middle, and engines that say how a version came to them."""

from __future__ import annotations

import os
import threading

from benchmarks.weights_parts import Player, Publisher, Spec
from learner.weights import collective
from protocols.broadcast import Group
from support.waiting import deadline_s

PIECE = 64 << 10  # of a model of 1.5 MB


class Learner(Publisher):
    """One whose broadcasts can be halted in the middle."""

    def __init__(self, spec: Spec):
        super().__init__(spec, "cpu")
        self._broadcasts._piece_bytes = PIECE
        self._halting, self._halted, self._go = False, threading.Event(), threading.Event()
        learner, whole = self, Group.broadcast

        class Halting(Group):
            def broadcast(self, data, piece_bytes: int, device: str) -> None:
                whole(self, data[: 4 * piece_bytes], piece_bytes, device)
                learner._halted.set()
                if learner._halting:
                    learner._go.wait(deadline_s(60.0))
                whole(self, data[4 * piece_bytes :], piece_bytes, device)

        collective.Group = Halting

    def next(self):
        """A new version, for actors of other nodes."""
        self._halted.clear()
        return self.publish("collective").ref

    def halt(self) -> None:
        self._halting = True

    def halted(self) -> bool:
        return self._halted.wait(deadline_s(60.0))

    def go(self) -> None:
        self._halting = False
        self._go.set()


class Played(Player):
    def pid(self) -> int:
        return os.getpid()

    async def taken(self, ref) -> str:
        """Has the engine take a version, and says how that came. Raises WeightsError where it is not proved."""
        found = await self.update(ref)
        assert self._engine.version == ref.version
        return found["by"]
