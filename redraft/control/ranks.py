"""The learner's ranks as processes: where they start, how they are set up, and how others take their place.

Their room is reserved once, and stays theirs when one of them dies: no actor takes it meanwhile, and Ray finds other
room for what was on a node that is lost. A rank that was killed holds its share of that room until its process has
ended, so one that comes after it finds no other at work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, overload

import ray

from protocols.errors import DeadlineError
from protocols.metrics_page import LOOPBACK
from protocols.reports import LearnerReady
from redraft.control import discovery, placement, workers
from redraft.control.discovery import Process
from redraft.control.shards import Shards
from redraft.recipe import Recipe
from redraft.run import Run

WAIT_S = 1.0  # between two looks while something is waited for
Meanwhile = Callable[[Sequence[str]], None]
"""Told who is waited for, about every WAIT_S; what it raises ends the wait."""


class Ranks(Sequence[Any]):
    """Ray handles of those that there are now, rank 0 first; `closing` learns how they end."""

    def __init__(self, run: Run, recipe: Recipe, shards: Shards, closing: ExitStack):
        self._run, self._recipe, self._shards = run, recipe, shards
        self._gang = placement.gang(recipe.learner)
        self._handles: list[Any] = []
        self.begins: LearnerReady
        """Where those that were set up last go on from."""
        self.served: list[Process] = []
        """Where they serve their metrics."""
        if self._gang is not None:
            closing.callback(self._gang.remove)
        closing.callback(self.kill)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index):
        return self._handles[index]

    def __len__(self) -> int:
        return len(self._handles)

    def start(self, meanwhile: Meanwhile) -> None:
        """Starts a process for each; those that there were must have been killed. Raises DeadlineError where there is
        no room for all of them."""
        seats = None
        if self._gang is not None:
            self._gang.wait(self._recipe.start_s, lambda missing: meanwhile([f"learner: {missing}"]))
            seats = self._gang.seats()
        shards = self._shards
        self._handles = workers.start_ranks(self._run, self._recipe, shards.endpoints, shards.keys, seats)

    def set_up(self, resume: bool, meanwhile: Meanwhile) -> LearnerReady:
        """Has the ranks join each other and load the model; what rank 0 says of where training goes on."""
        start_s = self._recipe.start_s
        asked = {rank.address.remote(): f"learner rank {number}" for number, rank in enumerate(self)}
        master = meeting(wait_for_all(asked, start_s, meanwhile))
        setups = {rank.setup.remote(master, resume): f"learner rank {number}" for number, rank in enumerate(self)}
        self.begins = wait_for_all(setups, start_s, meanwhile)[0]
        listen = discovery.listen(self._run, self._recipe.metrics)
        calls = {rank.serves.remote(listen): f"learner rank {number}" for number, rank in enumerate(self)}
        found = wait_for_all(calls, start_s, meanwhile)
        self.served = [("learner", f"learner-{number}", host, port) for number, (host, port) in enumerate(found)]
        return self.begins

    def announce(self, controller: Any, meanwhile: Meanwhile) -> None:
        """Has them announce the weights that training starts from to the controller."""
        wait_for_all({rank.announce.remote(controller): "learner" for rank in self}, self._recipe.start_s, meanwhile)

    def kill(self) -> None:
        """Ends all processes, also of those that wait for one that is gone."""
        self.served = []
        for rank in self._handles:
            ray.kill(rank)


def meeting(addresses: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Where the ranks meet, of what each says of its node and a free port: at that of rank 0, on the loopback where all
    are on its node, which no other machine reaches."""
    host, port = addresses[0]
    return (LOOPBACK if {where for where, _ in addresses} == {host} else host), port


def wait_for_all(references: Mapping[Any, str], limit_s: float, meanwhile: Meanwhile) -> list[Any]:
    """Waits until all references have come, in any order: one that fails may be what the others wait for. Tells
    `meanwhile` who is still waited for. Raises what a call raised, or DeadlineError naming who did not answer."""
    waiting, deadline = dict(references), time.monotonic() + limit_s
    while waiting:
        ended = ray.wait(list(waiting), timeout=WAIT_S)[0]
        for reference in ended:
            ray.get(reference)
            del waiting[reference]
        if waiting:
            meanwhile(list(waiting.values()))
        if waiting and not ended and time.monotonic() > deadline:
            culprit = next(iter(waiting.values()))
            raise DeadlineError("the controller", culprit, limit_s, "it did not start; see logs/ in the run")
    return ray.get(list(references))
