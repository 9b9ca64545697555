"""Reports of many actors wait for something to say: for how long, and that what is new to one is sent meanwhile."""

from __future__ import annotations

import pickle
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest
from ray.cloudpickle.cloudpickle import dumps
from support.places import RECIPES

from actors.config import ActorSettings
from actors.contract import Orders, Report
from protocols.checksum import Sums
from protocols.weights import Probe, WeightRef
from redraft import recipe as recipes
from redraft.control import fleet as fleets
from redraft.control import pace as paces
from redraft.control.exchange import Announced, Exchange
from redraft.control.fleet import Fleet
from redraft.control.pace import SHARE, Pace

ROUND_S, LONGEST_S = 0.05, 15.0


def seen(exchanges: int, cost_s: float, monkeypatch) -> Pace:
    """A pace that has seen rounds of so many exchanges, each of that cost."""
    clock = [0.0]
    monkeypatch.setattr(paces, "thread_time", lambda: clock[0])
    pace = Pace(ROUND_S, LONGEST_S)
    for _ in range(10):
        with pace:
            clock[0] += exchanges * cost_s
        pace.ended(exchanges)
    return pace


def test_few_actors_report_in_every_round_and_the_more_there_are_the_longer_their_reports_may_wait(monkeypatch):
    pace = seen(20, 0.0004, monkeypatch)
    assert pace.exchange_s == pytest.approx(0.0004)
    waits = [pace.wait_s(actors) for actors in (1, 8, 64, 1024, 100_000)]
    assert waits[:2] == [0, 0] and waits[2] == pytest.approx(64 * 0.0004 / SHARE) and waits[-1] == LONGEST_S
    assert 1024 / waits[3] * pace.exchange_s == pytest.approx(SHARE)


def test_the_wait_follows_what_an_exchange_is_seen_to_cost_and_nothing_waits_before_that(monkeypatch):
    assert Pace(ROUND_S, LONGEST_S).wait_s(1024) == 0
    cheap, dear = seen(5, 0.0002, monkeypatch), seen(5, 0.0006, monkeypatch)
    assert dear.wait_s(1024) == pytest.approx(3 * cheap.wait_s(1024))


def test_time_outside_of_exchanges_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(paces, "thread_time", lambda: clock[0])
    pace = Pace(ROUND_S, LONGEST_S)
    with pace:
        clock[0] += 0.001
    clock[0] += 5.0
    pace.ended(1)
    assert pace.exchange_s == pytest.approx(0.001, rel=0.01)


class Reached(Fleet):
    """Actors that are ready and whose calls do not end before they are let; `sent` are the orders of each."""

    def __init__(self, count: int) -> None:
        self.sent: dict[str, list[Orders]] = {}
        super().__init__(self._handle, ActorSettings(count=count), 60.0, lambda *_: None)
        for member in self.members.values():
            member.report = Report("ready", 1, pid=1)

    def _handle(self, name: str) -> Any:
        sent = self.sent.setdefault(name, [])
        return SimpleNamespace(apply=SimpleNamespace(remote=lambda func, orders: sent.append(orders) or object()))

    def receive(self) -> list:
        return []

    def new(self) -> list[list[Orders]]:
        """What each actor was sent since the last time."""
        found = [list(orders) for orders in self.sent.values()]
        for orders in self.sent.values():
            orders.clear()
        return found


class House:
    """An exchange with such actors; `room` is for so many groups."""

    def __init__(self, count: int) -> None:
        self.fleet, self.announced, self.room = Reached(count), Announced(), 0
        self.busy: Counter[int] = Counter()
        book = SimpleNamespace(busy=lambda: Counter(self.busy), give=self._give, live={})
        look, client = SimpleNamespace(look=lambda *_: 0), SimpleNamespace(lease=lambda given: None)
        parts: Any = SimpleNamespace(
            fleet=self.fleet,
            ranks=[SimpleNamespace()],
            files=look,
            copier=look,
            lost=deque(),
            shards=look,
            book=book,
            client=client,
        )
        status: Any = SimpleNamespace(gpus=lambda *_: None, fleet=lambda *_: None)
        recipe = recipes.load(RECIPES / "quickstart.yaml", [f"actors.count={count}", "actors.groups=2"])
        self.exchange = Exchange(parts, recipe, status, self.announced)
        self.exchange._room = lambda admission: self.room
        self.exchange._pace.wait_s = lambda actors: 9.0

    def _give(self, number: int, count: int, now: float) -> list[str]:
        self.busy[number] += count
        self.room -= count
        return ["group"] * count

    def tick(self) -> list[list[Orders]]:
        self.exchange.tick(SimpleNamespace())  # pyright: ignore[reportArgumentType]  only handed on
        return self.fleet.new()

    def publish(self, version: int) -> None:
        self.announced.newest = WeightRef(version, 1, Sums(), (), Probe((), (), 1.0))


def test_an_actor_whose_report_waits_is_told_of_new_weights_at_once_and_once():
    house = House(2)
    house.publish(1)
    assert [[orders.wait_s for orders in each] for each in house.tick()] == [[9.0], [9.0]]
    assert house.tick() == [[], []], "there is nothing new to tell"
    house.publish(2)
    told = [[orders.weights for orders in each] for each in house.tick()]
    assert told == [[house.announced.newest], [house.announced.newest]]
    assert house.tick() == [[], []]


def test_an_actor_that_keeps_the_version_that_is_evaluated_is_not_asked_again_and_again():
    house = House(1)
    house.publish(1)
    house.tick()
    house.announced.held = 1
    house.publish(2)
    assert house.tick() == [[]] and house.tick() == [[]]
    house.announced.held = None
    assert [[orders.weights for orders in each] for each in house.tick()] == [[house.announced.newest]]


def test_room_that_comes_is_given_at_once_to_those_that_wait_and_are_free():
    house = House(3)
    house.publish(1)
    house.busy[0] = 2
    house.tick()
    house.room = 3
    assert [[len(orders.leases) for orders in each] for each in house.tick()] == [[], [2], [1]]
    assert house.tick() == [[], [], []]


def test_an_actor_has_two_exchanges_at_most():
    house = House(1)
    for version in (1, 2, 3):
        house.publish(version)
        house.tick()
    assert [len(orders) for orders in house.tick()] == [0] and house.fleet.waiting() == []


def test_what_actors_are_asked_is_pickled_by_its_name():
    asked = dumps(fleets.exchange)
    assert asked == pickle.dumps(fleets.exchange, protocol=asked[1])


def test_two_exchanges_that_fail_together_are_one_loss(monkeypatch):
    lost = []
    fleet = Fleet(lambda name: SimpleNamespace(), ActorSettings(count=1), 60.0, lambda number, why: lost.append(number))
    monkeypatch.setattr(fleets.ray, "kill", lambda *_, **__: None)
    monkeypatch.setattr(fleet, "_answers", lambda tag: [(0, False, RuntimeError("gone"))] * 2)
    assert fleet.receive() == [] and lost == [0]
