"""Learner and engines on one GPU take turns: it trains when all of them sleep, and they play when it has published."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from support.places import RECIPES

from actors.config import ActorSettings
from actors.contract import Orders, Report
from learner.ranks.lead import Waits, rest
from protocols.checksum import Sums
from protocols.errors import DeadlineError
from protocols.weights import Probe, WeightRef
from redraft import recipe as recipes
from redraft.control.exchange import Announced, Exchange
from redraft.control.fleet import Fleet
from redraft.control.rank_gpus import RankGpus

TURNS = ["actors.sleep=true", "learner.gpus=0.5", "actors.gpus=0.25", "learner.max_staleness=0"]


class Played(Fleet):
    """Actors that do at once what they are told; those of `gone` have no process, those of `deaf` do not sleep."""

    def __init__(self, count: int) -> None:
        super().__init__(lambda name: SimpleNamespace(), ActorSettings(count=count), 60.0, lambda *_: None)
        self.gone, self.deaf, self.sent = set[int](), set[int](), list[tuple[int, Orders]]()
        self._reports: list[tuple[int, Report]] = []

    def idle(self) -> list[int]:
        return list(self.members)

    def send(self, number: int, orders: Orders) -> bool:
        self.sent.append((number, orders))
        before = self.members[number].report
        version = before.version if orders.weights is None else orders.weights.version
        asleep = orders.weights is None and (before.asleep or orders.sleep) and number not in self.deaf
        self._reports.append((number, Report("ready", version, pid=1, asleep=asleep)))
        return True

    def receive(self) -> list[tuple[int, Report]]:
        reports, self._reports = self._reports, []
        for number, report in reports:
            self.members[number].report = Report("starting") if number in self.gone else report
        return reports


class Book:
    """Leases one group for each that is asked for."""

    live: dict = {}

    def busy(self) -> dict[int, int]:
        return dict.fromkeys(range(9), 0)

    def give(self, number: int, count: int, now: float) -> list[str]:
        return ["group"] * count

    def closed(self, groups: Any) -> None:
        """None is."""


class House:
    """An exchange with such actors, in which there is always something to play, and a learner that is told."""

    def __init__(self, count: int = 2) -> None:
        self.fleet, self.told, self.announced = Played(count), list[int](), Announced()
        rank = SimpleNamespace(rested=SimpleNamespace(remote=self.told.append))
        silent = SimpleNamespace(look=lambda *_: None, forget=lambda *_: None)
        shards = SimpleNamespace(look=lambda: 0)
        parts: Any = SimpleNamespace(
            fleet=self.fleet,
            ranks=[rank],
            files=silent,
            copier=SimpleNamespace(look=lambda: None),
            lost=deque(),
            shards=shards,
            book=Book(),
            client=SimpleNamespace(lease=lambda _: None),
        )
        status: Any = SimpleNamespace(gpus=lambda *_: None, fleet=lambda *_: None, played=lambda *_: None)
        recipe = recipes.load(RECIPES / "quickstart.yaml", [*TURNS, f"actors.count={count}"])
        self.exchange = Exchange(parts, recipe, status, self.announced)
        self.exchange._room = lambda admission: count
        self.exchange._gpus = RankGpus(())  # there are none that could be asked

    def publish(self, version: int) -> None:
        self.announced.newest = WeightRef(version, 1, Sums(), (), Probe((), (), 1.0))

    def ticks(self, count: int = 3) -> list[tuple[int, Orders]]:
        """What was sent in so many rounds."""
        self.fleet.sent.clear()
        for _ in range(count):
            self.exchange.tick(SimpleNamespace())  # pyright: ignore[reportArgumentType]  only handed on
        return self.fleet.sent

    def asleep(self) -> list[bool]:
        return [member.report.asleep for member in self.fleet.members.values()]


@pytest.fixture
def house() -> House:
    made = House()
    made.publish(1)
    made.ticks()
    return made


def test_engines_sleep_from_when_the_learner_asks_until_it_has_published_and_nothing_is_leased_meanwhile(house):
    assert any(orders.leases for _, orders in house.ticks())
    house.exchange.rest(1)
    assert not any(orders.leases for _, orders in house.ticks())
    assert house.asleep() == [True, True] and house.told == [1], "it is told once"
    house.publish(2)
    sent = house.ticks()
    assert house.asleep() == [False, False] and any(orders.leases for _, orders in sent)
    assert not any(orders.sleep for _, orders in sent)
    house.exchange.rest(2)
    house.ticks()
    assert house.told == [1, 2]


def test_the_learner_is_not_told_before_the_last_engine_sleeps(house):
    house.fleet.deaf = {1}
    house.exchange.rest(1)
    house.ticks()
    assert house.asleep() == [True, False] and not house.told
    house.fleet.deaf = set()
    house.ticks()
    assert house.told == [1]


def test_an_actor_whose_process_is_gone_is_not_waited_for_and_starts_no_engine_before_the_learner_is_done(house):
    house.fleet.gone = {0}
    house.fleet.members[0].report = Report("starting")
    house.exchange.rest(1)
    house.fleet.members[0].began = 0.0
    assert {number for number, _ in house.ticks()} == {1} and house.told == [1]
    assert house.fleet.members[0].began > 0.0, "the time to start does not count"
    house.fleet.gone = set()
    house.publish(2)
    assert {number for number, _ in house.ticks()} == {0, 1}


def test_a_learner_that_asks_before_its_version_is_known_is_heard_when_it_is(house):
    house.exchange.rest(2)
    house.ticks()
    assert house.asleep() == [False, False] and not house.told
    house.publish(2)
    house.ticks()
    assert house.told == [2]


def test_the_learner_waits_for_word_of_the_version_that_it_published_and_no_longer_than_its_deadline():
    waits, asked, seconds = Waits(), list[int](), dict[str, float]()
    controller = SimpleNamespace(rest=SimpleNamespace(remote=asked.append))
    waits.rested(1)
    with pytest.raises(DeadlineError, match="sleep"):
        rest(controller, waits, 2, 0.0, seconds, list)
    telling = threading.Thread(target=waits.rested, args=(2,))
    telling.start()
    rest(controller, waits, 2, 60.0, seconds, list)
    telling.join()
    assert asked == [2, 2] and seconds["wait"] >= 0.0
