"""Engines that sleep while the learner trains, where they share GPUs (`actors.sleep`).

The learner has its batch, of which nothing is in play any more, and asks for rest. Actors are told to put their engines
to sleep; when all do, the learner is told, trains and publishes. With the new version an actor wakes its engine.
Nothing is leased meanwhile, and no actor starts an engine: the GPU has no room for it.
"""

from __future__ import annotations

from collections.abc import Callable

from protocols.weights import TRIAL, WeightRef
from redraft.control.fleet import Fleet


class Rest:
    """Of a run. `begin` is called in any thread, the rest in the one that looks after the fleet."""

    def __init__(self, tell: Callable[[int], object], fleet: Fleet):
        self._tell, self._fleet = tell, fleet
        self._version = self._told = TRIAL

    def begin(self, version: int) -> None:
        """The learner has its batch, and has published this version last."""
        self._version = version

    def look(self, newest: WeightRef | None) -> bool:
        """Whether engines are to sleep, as long as there is no newer version than that. Tells the learner once, when
        all do or are not there."""
        if newest is None or newest.version != self._version:
            return False
        if self._told != self._version and all(map(self._rests, self._fleet.members)):
            self._told = self._version
            self._tell(self._version)
        return True

    def _rests(self, number: int) -> bool:
        return self._fleet.members[number].report.asleep or not self._fleet.begun(number)
