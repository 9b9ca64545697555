"""The parts of a run that has started, and how they are started."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from actors import mixture as mixtures
from actors.contract import Orders
from redraft.control import workers
from redraft.control.copier import Copier
from redraft.control.discovery import Process
from redraft.control.fleet import Fleet
from redraft.control.leases import LeaseBook
from redraft.control.ranks import Ranks, wait_for_all
from redraft.control.shards import Shards
from redraft.control.status import Status
from redraft.recipe import Recipe
from redraft.run import Run
from replay.client import Client

log = logging.getLogger("redraft.controller")
CLOSE_S = 5.0  # for the actors, and for the owners of weight files, to end


@dataclass(frozen=True, slots=True)
class Parts:
    """All of them, up and known to each other."""

    fleet: Fleet
    lost: deque[tuple[int, str]]
    """Actors that the fleet has lost, and why; whoever takes one out gives its leases again."""
    ranks: Ranks
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
        yield from self.ranks.served
        for shard, where in list(self.shards.served.items()):
            yield "replay", f"replay-{shard}", *where
        for member in list(self.fleet.members.values()):
            if member.report.metrics_port:
                yield "actor", member.name, member.report.address, member.report.metrics_port

    def wait(self, references: Mapping[Any, str], limit_s: float) -> list[Any]:
        """What these calls return, in their order; the names are those of whom is waited for. See `wait_for_all`."""
        return wait_for_all(references, limit_s, lambda _: self.files.look(self.fleet))


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
    ranks = Ranks(run, recipe, shards, closing)
    ranks.start(lambda lacking: status.missing([*lacking, "actors"]))
    status.missing(["replay", "learner", "actors"])
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

    begins = ranks.set_up(resume, meanwhile)
    status.started(begins.step, begins.trained, begins.last)
    cursor, incarnation = begins.cursor, begins.incarnation
    order = mixtures.order(recipe.mixture, tasks, recipe.seed, recipe.curriculum, dict(cursor))
    position = cursor.get("position", 0)
    book = LeaseBook(order, run.id, recipe.seed, position, incarnation, client.known, shards.of)
    log.info("started: step %d, incarnation %d, %d training tasks", begins.step, incarnation, len(tasks))
    return Parts(fleet, lost, ranks, shards, client, files, copier, book, tests, begins.step)
