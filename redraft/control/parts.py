"""The parts of a run that has started, and how they are started."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray

from actors import mixture as mixtures
from actors.contract import Orders
from protocols.errors import DeadlineError
from protocols.reports import LearnerReady
from redraft.control import placement, workers
from redraft.control.copier import Copier
from redraft.control.discovery import Process
from redraft.control.fleet import Fleet
from redraft.control.leases import LeaseBook
from redraft.control.shards import Shards
from redraft.control.status import Status
from redraft.recipe import Recipe
from redraft.run import Run
from replay.client import Client

log = logging.getLogger("redraft.controller")
WAIT_S = 1.0  # between two looks while something is waited for
Meanwhile = Callable[[Sequence[str]], None]
CLOSE_S = 5.0  # for the actors, and for the owners of weight files, to end


@dataclass(frozen=True, slots=True)
class Parts:
    """All of them, up and known to each other. `ranks` are Ray handles, rank 0 first."""

    fleet: Fleet
    lost: deque[tuple[int, str]]
    """Actors that the fleet has lost, and why; whoever takes one out gives its leases again."""
    ranks: Sequence[Any]
    served: Sequence[Process]
    """Where the ranks serve their metrics."""
    shards: Shards
    client: Client
    files: workers.Files
    copier: Copier
    book: LeaseBook
    tests: Sequence[dict]
    step: int
    """Optimizer steps that were done before."""

    def processes(self) -> Iterator[Process]:
        """All that serve metrics now, but the controller."""
        yield from self.served
        for shard, where in list(self.shards.served.items()):
            yield "replay", f"replay-{shard}", *where
        for member in list(self.fleet.members.values()):
            if member.report.metrics_port:
                yield "actor", member.name, member.report.address, member.report.metrics_port

    def wait(self, references: Mapping[Any, str], limit_s: float) -> list[Any]:
        """What these calls return, in their order; the names are those of whom is waited for. See `wait_for_all`."""
        return wait_for_all(references, limit_s, lambda _: self.files.look(self.fleet))


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


def start(run: Run, recipe: Recipe, resume: bool, status: Status, closing: ExitStack) -> Parts:
    """Starts every part; `closing` learns how each ends, in the order in which turns flow.

    Raises SettingError, or DeadlineError naming the part that did not come up.
    """
    status.phase("starting", "tasks")
    tasks, tests = (mixtures.tasks(recipe.mixture, split) for split in ("train", "test"))
    status.missing(["replay", "learner", "actors"])
    shards = Shards(run, recipe)
    closing.callback(shards.close)
    shards.start()
    client = Client(shards.endpoints, "controller", shards.keys)
    closing.callback(client.close)
    files = workers.Files(run)
    closing.callback(files.close, CLOSE_S)
    copier = Copier(run, recipe, status)
    closing.callback(copier.close)
    seats = _placed(recipe, status, closing)
    ranks = workers.start_ranks(run, recipe, shards.endpoints, shards.keys, seats)
    for rank in ranks:
        closing.callback(ray.kill, rank)
    lost: deque[tuple[int, str]] = deque()
    maker = workers.actor_maker(run, recipe, shards.keys)
    fleet = Fleet(maker, recipe.actors, recipe.start_s, lambda number, why: lost.append((number, why)))
    closing.callback(fleet.close, CLOSE_S)
    for number in fleet.idle():
        fleet.send(number, Orders())  # so that their engines start while the learner does
    status.tasks(tasks, tests)
    shards.wait(recipe.start_s)

    def meanwhile(waiting: Sequence[str]) -> None:
        files.look(fleet)
        fleet.hear()
        status.missing([*waiting, *fleet.lacking(weights=False)])

    begins = _set_up(ranks, recipe, resume, meanwhile)
    served = _serve(ranks, run, recipe, meanwhile)
    status.started(begins.step, begins.trained, begins.last)
    cursor, incarnation = begins.cursor, begins.incarnation
    order = mixtures.order(recipe.mixture, tasks, recipe.seed, recipe.curriculum, dict(cursor))
    position = cursor.get("position", 0)
    book = LeaseBook(order, run.id, recipe.seed, position, incarnation, client.known, shards.of)
    log.info("started: step %d, incarnation %d, %d training tasks", begins.step, incarnation, len(tasks))
    return Parts(fleet, lost, ranks, served, shards, client, files, copier, book, tests, begins.step)


def _placed(recipe: Recipe, status: Status, closing: ExitStack) -> list | None:
    """Where each rank is to start, when there is room for all of them; None where Ray may put it anywhere."""
    gang = placement.gang(recipe.learner)
    if gang is None:
        return None
    closing.callback(gang.remove)
    gang.wait(recipe.start_s, lambda missing: status.missing([f"learner: {missing}", "actors"]))
    status.missing(["replay", "learner", "actors"])
    return gang.seats()


def _set_up(ranks: Sequence[Any], recipe: Recipe, resume: bool, meanwhile: Meanwhile) -> LearnerReady:
    """Has the ranks join each other and load the model; what rank 0 says of where training goes on."""
    (master,) = wait_for_all({ranks[0].address.remote(): "learner rank 0"}, recipe.start_s, meanwhile)
    setups = {rank.setup.remote(master, resume): f"learner rank {number}" for number, rank in enumerate(ranks)}
    return wait_for_all(setups, recipe.start_s, meanwhile)[0]


def _serve(ranks: Sequence[Any], run: Run, recipe: Recipe, meanwhile: Meanwhile) -> list[Process]:
    """Has the ranks serve their metrics; where they do."""
    listen = recipe.metrics.listen(run.cluster)
    calls = {rank.serves.remote(listen): f"learner rank {number}" for number, rank in enumerate(ranks)}
    found = wait_for_all(calls, recipe.start_s, meanwhile)
    return [("learner", f"learner-{number}", host, port) for number, (host, port) in enumerate(found)]
