"""What the controller does twenty times a second once all parts are up: it takes the actors' reports, looks after
leases and the fleet's size, and gives actors their orders: leases, new weights.

With a few actors each one reports in every round. With many, a report waits until there is something to say, or for as
long as `redraft.control.pace` allows; orders that are new to such an actor are sent all the same, and end the wait."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from actors.contract import Orders, Report
from protocols import metrics
from protocols.errors import RedraftError, SettingError
from protocols.log_facts import about
from protocols.replay_stats import ReplayStats
from protocols.reports import StepReport
from protocols.weights import WeightRef, incarnation_of, step_of
from redraft.control import places
from redraft.control.admission import Admission, beyond_the_bound, groups_at_once
from redraft.control.autoscale import Autoscaler
from redraft.control.discovery import Process
from redraft.control.leases import PLAYS
from redraft.control.pace import Pace
from redraft.control.parts import Parts
from redraft.control.places import Scaled
from redraft.control.rank_gpus import RankGpus
from redraft.control.rest import Rest
from redraft.control.status import Status
from redraft.control.workers import needs
from redraft.recipe import Recipe

TICK_S = 0.05  # between two rounds
SHOW_S = 0.2  # between two looks at all actors for people and metrics
SILENT = 0.25  # of actors.silence_s: an actor without news is heard of so often at least
GIVEN_UP = 10  # groups that could not be played, before the run stops
BLAMELESS = ("actor", "drained", "learner")  # reasons for which a lease is lost, where the group is not to blame


class Announced:
    """The weights that the learner announced last: None before the first time. With them goes the trial, which an
    actor must follow before it may play with any."""

    def __init__(self) -> None:
        self.newest: WeightRef | None = None
        self.trial: WeightRef | None = None
        self.held: int | None = None
        """The version that actors who have it keep, since it is evaluated."""
        self._lost = -1

    def forget(self) -> None:
        """The learner has died: nobody can take these weights any more, and what it may still say does not count."""
        if self.newest is not None:
            self._lost = incarnation_of(self.newest.version)
        self.newest = self.trial = self.held = None

    def counts(self, version: int) -> bool:
        """Whether word of a version is of the learner that there is, not of one that has died."""
        return incarnation_of(version) > self._lost

    def is_new(self, version: int) -> bool:
        """Whether it counts, and none that is as new was announced."""
        return self.counts(version) and (self.newest is None or version > self.newest.version)

    @property
    def version(self) -> int:
        """Raises RedraftError before any was announced."""
        if self.newest is None:
            raise RedraftError("the learner has announced no weights yet")
        return self.newest.version

    def orders(self, version: int | None) -> tuple[WeightRef | None, WeightRef | None]:
        """What an actor with this version has yet to load: new weights, and the trial where it has none at all."""
        if version is not None and version == self.held:
            return None, None
        new = self.newest if self.newest is not None and self.newest.version != version else None
        return new, self.trial if new is not None and version is None else None


class Starting:
    """What stands in the place of the exchange while the parts start, and again when they end."""

    cursor: Mapping[str, Any] = {"position": 0}

    def processes(self) -> Iterator[Process]:
        return iter(())

    def stepped(self, report: StepReport) -> None:
        """Nobody is to be told."""

    def scale(self, count: int, joinable: bool) -> Scaled:
        raise SettingError("RUN", "has no actors now", "Wait until it trains")

    def grow(self) -> int:
        raise SettingError("RUN", "is not training", "Wait until it trains")

    def rest(self, version: int) -> None:
        """Nobody plays."""

    def stop(self, ended: bool = False) -> None:
        """Nothing is to be stopped."""


class Exchange:
    """The one of a run that has started. `tick` is called in one thread, the other methods in any."""

    def __init__(self, parts: Parts, recipe: Recipe, status: Status, announced: Announced):
        self.parts, self._recipe, self._status, self._announced = parts, recipe, status, announced
        actors = recipe.actors
        self._size, self._at_once = actors.count, groups_at_once(recipe)
        self._pace = Pace(TICK_S, SILENT * actors.silence_s)
        self._rest = Rest(lambda version: parts.ranks[0].rested.remote(version), parts.fleet) if actors.sleep else None
        self._growing = threading.Lock()
        self._gpus = RankGpus(parts.ranks if recipe.learner.gpus else ())
        self._autoscaler = Autoscaler(actors.autoscale, actors.count) if actors.autoscale else None
        self._shown_at = -math.inf
        self._reported: deque[tuple[float, StepReport]] = deque()  # steps that the autoscaler has not seen

    @property
    def cursor(self) -> Mapping[str, Any]:
        """Where in the order of tasks a run resumed from now would go on."""
        return self.parts.book.state

    def processes(self) -> Iterator[Process]:
        """All that serve metrics now, but the controller."""
        return self.parts.processes()

    def stop(self, ended: bool = False) -> None:
        """Has the learner finish its step, and write a checkpoint; where its recipe `ended` the run, publish, too."""
        for rank in self.parts.ranks:
            rank.stop.remote(ended)

    def arrived(self) -> bool:
        """Whether all actors that are ready have the newest weights, and there is one."""
        return self.versions() == {self._announced.version}

    def versions(self) -> set[int | None]:
        """Those of actors that are ready."""
        fleet = self.parts.fleet
        return {fleet.members[number].report.version for number in fleet.ready()}

    def stepped(self, report: StepReport) -> None:
        """The learner has done a step."""
        if self._autoscaler is not None:
            self._reported.append((time.monotonic(), report))

    def rest(self, version: int) -> None:
        """The learner has its batch, and waits for engines to sleep: see redraft.control.rest."""
        if self._rest is not None:
            self._rest.begin(version)

    def scale(self, count: int, joinable: bool) -> Scaled:
        """How many actors there should be from now on, and what to say to that, where nodes may join or not. Raises
        SettingError where there is no room for them and never will be, and where the run sizes itself."""
        if self._autoscaler is not None:
            raise SettingError("RUN", "sizes itself, by actors.autoscale", "Resume it with other bounds, or without")
        fleet, need = self.parts.fleet, places.demand(needs(self._recipe.actors))
        room = fleet.placed + places.fitting(need, places.free_of_nodes())
        grows = joinable and count > room and places.scaled()
        said = places.answer(self._size, count, room, need, joinable, grows)
        self._size = count
        return replace(said, note="; ".join(filter(None, (said.note, beyond_the_bound(self._recipe, count)))))

    def grow(self) -> int:
        """One more replay service, for groups that are not leased yet; returns how many there are."""
        parts, start_s = self.parts, self._recipe.start_s
        with self._growing:
            parts.shards.grow(start_s)
            shards = parts.shards.endpoints
            parts.client.grow(shards)
            parts.wait({parts.ranks[0].grow.remote(shards): "learner rank 0"}, start_s)
            parts.shards.open()
        return len(shards)

    def tick(self, admission: Admission | None = None) -> None:
        """One round; groups are leased only with an `admission`."""
        parts = self.parts
        parts.files.look(parts.fleet)
        parts.copier.look()
        with self._pace:
            reports = parts.fleet.receive()
            for number, report in reports:
                self._take(number, report)
        self._pace.ended(len(reports))
        while parts.lost:
            self._lost(*parts.lost.popleft())
        self._resize()
        self._gpus.look()
        self._status.gpus(self._gpus.newest)
        if restarted := parts.shards.look():
            metrics.RESTARTS.labels(process="replay").inc(restarted)
        room = 0 if admission is None else self._room(admission)
        resting = self._rest is not None and not self._evaluating and self._rest.look(self._announced.newest)
        self._give_orders(0 if resting else room, resting)

    def _take(self, number: int, report: Report) -> None:
        """What one actor reports."""
        self.parts.book.closed(report.closed)
        for group, token, why in report.abandoned:
            self._abandon(group, token, why)
        self._status.played(number, report)

    def _lost(self, number: int, why: str) -> None:
        """An actor is gone: its leases are given again."""
        self._status.replaced(number, why)
        metrics.RESTARTS.labels(process="actor").inc()
        for group, token in self.parts.book.of(number):
            self._abandon(group, token, why, "actor")

    def recall(self, why: str) -> None:
        """Takes all leases back, but for those whose groups are closed already: what is played is of weights that the
        learner will not have made, and replay refuses what still comes of it."""
        book, client = self.parts.book, self.parts.client
        closed = client.known(list(book.live))
        for group in [group for group in book.live if group not in closed]:
            self._abandon(group, book.live[group].lease.fencing_token, why, "learner")

    def _resize(self) -> None:
        """Brings the fleet to its size. Who leaves has its leases until they end; then, or after a while, it goes."""
        fleet, book = self.parts.fleet, self.parts.book
        while self._reported and self._autoscaler is not None:
            self._size = self._autoscaler.step(*self._reported.popleft())
        if self._size != fleet.target:
            self._status.event(f"{self._size} actors asked for, {fleet.target} before")
            fleet.resize(self._size)
        for number in fleet.leaving():
            member = fleet.members[number]
            for group, token in book.of(number) if member.late else ():
                self._abandon(group, token, "its actor left", "drained")
            if not member.evaluating and not book.of(number):
                fleet.remove(number)
                self.parts.files.forget(member.name)

    def _abandon(self, group: bytes, token: int, why: str, reason: str = "abandoned") -> None:
        """Takes a lease back and has replay drop its rows. Raises RedraftError when groups fail again and again."""
        blamed, book = reason not in BLAMELESS, self.parts.book
        lease = book.lost(group, token, blamed, why)
        if lease is None:
            return
        metrics.LEASES_LOST.labels(reason=reason).inc()
        if blamed:
            with about(group=group.hex(), lease=token):
                self._status.event(f"group {group.hex()[:8]} abandoned: {why}", once=why)
        self.parts.client.abandon(group, lease.fencing_token, lease.shard)
        if book.given_up >= GIVEN_UP:
            raise RedraftError(f"{GIVEN_UP} groups could not be played, in {PLAYS} tries each; the last: {why}")

    def _room(self, admission: Admission) -> int:
        """How many groups may be leased now."""
        fleet, book = self.parts.fleet, self.parts.book
        limit_s = self._recipe.actors.lease_s + self._recipe.actors.silence_s
        for group, token in book.overdue(time.monotonic() - limit_s):
            self._abandon(group, token, f"no word of it for {limit_s:.0f} s", "expired")
        reports = [fleet.members[number].report for number in fleet.ready()]
        steps = [step_of(report.version) for report in reports if report.version is not None]
        if not steps:
            return admission.close()
        stats = self.parts.client.stats()
        self._status.replay(stats)
        self._heed(stats)
        busy = book.busy()
        free = any(busy[number] < self._at_once for number in fleet.ready())
        return admission.room(min(steps), stats, len(book.live), free, self._evaluating)

    @property
    def _evaluating(self) -> bool:
        """Whether actors keep a version, since it is evaluated."""
        return self._announced.held is not None

    def _heed(self, stats: ReplayStats) -> None:
        """What replay says of its disk: that it is full, or which closed groups it has lost, which are played again."""
        if stats.full:
            problem = "the disk of the run folder is full; nothing is leased until there is room"
            self._status.event(f"replay: {problem}", once="full")
        if not stats.corrupt:
            return
        found = {bytes.fromhex(corrupt.group): corrupt for corrupt in stats.corrupt}
        played = self.parts.client.known(list(found))  # elsewhere, since a shard joined
        for group, corrupt in found.items():
            if group not in played and self.parts.book.again(group, corrupt.lease, corrupt.order, corrupt.shard):
                self._status.event(f"group {corrupt.group[:8]} was corrupt on the disk; it is played again")

    def _give_orders(self, room: int, resting: bool) -> None:
        """Sends orders to who can be sent some; looks after the fleet's own size, and shows it."""
        fleet, book = self.parts.fleet, self.parts.book
        busy, ready = book.busy(), set(fleet.ready())
        with self._pace:
            room = self._send(room, resting, busy, ready)
        if self._autoscaler is not None:
            without = sum(not busy[number] for number in ready) if not room else 0
            self._autoscaler.look(time.monotonic(), without, fleet.settled)
        if time.monotonic() >= self._shown_at + SHOW_S:
            self._shown_at = time.monotonic()
            self._status.fleet(fleet.members, fleet.target, len(book.live))

    def _send(self, room: int, resting: bool, busy: Counter[int], ready: set[int]) -> int:
        """Sends every idle actor its orders, and one whose report waits for news those that are new to it. The room is
        shared out, the least busy first; returns what is left. While engines are `resting` none is started."""
        fleet, book = self.parts.fleet, self.parts.book
        wait_s = 0.0 if resting else self._pace.wait_s(len(fleet.members))
        idle = set(fleet.idle())
        free = {number for number in ready if busy[number] < self._at_once} if room else set()
        asked = [*idle, *(n for n in fleet.waiting() if resting or n in free or self._is_new_to(n))]
        takers = free.intersection(asked)
        sent: list[tuple[int, Orders]] = []
        for number in sorted(asked, key=busy.__getitem__):
            if resting and not fleet.begun(number):
                fleet.hold(number)
                continue
            leases = []
            if room and number in takers:
                share = min(math.ceil(room / len(takers)), self._at_once - busy[number])
                leases = book.give(number, share, time.monotonic())
                room -= len(leases)
                busy[number] += len(leases)
            takers.discard(number)
            if leases or resting or number in idle or self._is_new_to(number):
                new, trial = self._announced.orders(fleet.members[number].report.version)
                sent.append((number, Orders(tuple(leases), new, trial, resting, wait_s)))
        self._lease(sent)
        for number, orders in sent:
            fleet.send(number, orders)
        return room

    def _lease(self, sent: list[tuple[int, Orders]]) -> None:
        """Tells replay of the leases in these orders, before any of them can be played."""
        members = self.parts.fleet.members
        given = [(lease, members[number].report.version or 0) for number, orders in sent for lease in orders.leases]
        if given:
            self.parts.client.lease(given)

    def _is_new_to(self, number: int) -> bool:
        """Whether the newest weights are such that an actor has neither nor was told of, and is not to keep its own."""
        member, newest = self.parts.fleet.members[number], self._announced.newest
        has, held = member.report.version, self._announced.held
        return newest is not None and newest.version not in (has, member.told) and (held is None or has != held)
