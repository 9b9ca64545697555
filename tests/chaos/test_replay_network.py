"""The network fails between producers, learner and replay: all is acknowledged, stored and used once, bytes right.

Everything goes over tcp through a proxy that cuts connections in the middle of a message, or holds them silently for
longer than the time after which things are sent again.
"""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.ports import free_ports
from support.replay_house import ANY, client_of, gid, play, problem_of, producer_of, turns_of
from support.tcp_proxy import Proxy
from support.waiting import deadline_s, until

from protocols.errors import DeadlineError
from replay import keys
from replay.config import RESEND_S, Endpoints, ReplaySettings
from replay.server.service import Service

DEADLINE_S = 30.0
HOLE_S = 1.6 * RESEND_S


class House:
    """A service behind two proxies, with a producer and a learner's client in front of them."""

    def __init__(self, place: Path, curve: bool):
        keys.new(place / "keys")
        own = keys.client_keys(place / "keys") if curve else None
        ports = free_ports(2)
        behind = Endpoints(*(f"tcp://127.0.0.1:{port}" for port in ports))
        self.service = Service(place / "spool", behind, ReplaySettings(curve=curve), "run", place / "keys")
        self.service.start()
        self.ingest, self.serve = (Proxy(port) for port in ports)
        self.shard = f"tcp://127.0.0.1:{self.ingest.port}"
        endpoints = Endpoints(self.shard, f"tcp://127.0.0.1:{self.serve.port}")
        self.producer, self.client = producer_of("actor", own), client_of(endpoints, "learner", DEADLINE_S, own)
        self.waiting = {}

    def play(self, count: int) -> None:
        for number in range(len(self.waiting), len(self.waiting) + count):
            self.waiting[gid(0, number)] = play(self.producer, gid(0, number), self.shard)

    def acknowledged(self) -> int:
        return sum(done.done() and done.exception() is None for done in self.waiting.values())

    def wait_for_all(self) -> None:
        until(lambda: self.acknowledged() == len(self.waiting), "all is acknowledged", DEADLINE_S)

    def use_all(self, before=lambda step: None) -> None:
        """Claims and commits every group; each is right and comes once. `before` is called before each claim."""
        used, began = [], time.monotonic()
        while len(used) < len(self.waiting):
            assert time.monotonic() - began < deadline_s(DEADLINE_S), (
                f"{len(used)} of {len(self.waiting)} used: {self.client.stats()}"
            )
            before(len(used))
            groups = self.client.claim(min(20, len(self.waiting) - len(used)), 0, ANY, 5.0).groups
            problems = [problem for group in groups if (problem := problem_of(group))]
            assert not problems, problems[:3]
            self.client.commit([group.id for group in groups], 1 + len(used))
            used += [group.id for group in groups]
        assert sorted(used) == sorted(self.waiting), "a group was lost, or used twice"

    def check(self) -> dict:
        """All is stored once, and used."""
        rows = sum(turns_of(group) + 1 for group in self.waiting)
        stats = self.client.stats()
        assert (stats.rows, stats.stored, stats.used) == (rows, rows, len(self.waiting))
        assert (stats.open, stats.ready, stats.claimed, stats.fenced) == (0, 0, 0, 0)
        return stats

    def close(self) -> None:
        with suppress(DeadlineError):  # rows were left because a test failed
            self.producer.close(1.0)
        self.client.close()
        self.service.stop()
        self.ingest.close()
        self.serve.close()


@pytest.fixture
def house(request):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        house = House(Path(folder), curve=getattr(request, "param", "plain") == "curve")
        try:
            yield house
        finally:
            house.close()


@pytest.mark.parametrize("house", ["plain", "curve"], indirect=True)
def test_connections_cut_in_the_middle_of_a_batch(house):
    generator, cuts = random.Random(1), 4
    house.play(10)
    house.wait_for_all()
    for number in range(cuts):
        house.ingest.cut_after(generator.randrange(1, 60_000))
        house.play(60)
        until(lambda number=number: house.ingest.cuts > number, "a cut", DEADLINE_S)
    house.wait_for_all()
    house.use_all()
    stats = house.check()
    print(f"replay network: {cuts} cuts within batches, {stats.stored} rows stored, {stats.duplicate} sent again")
    assert house.ingest.connections > cuts


@pytest.mark.parametrize("end", ["resume", "drop"])
def test_connections_that_carry_nothing_for_a_while(house, end):
    house.play(10)
    house.wait_for_all()
    house.ingest.hole()
    house.play(100)
    silent_until(time.monotonic() + HOLE_S, house)
    getattr(house.ingest, end)()
    house.wait_for_all()
    house.use_all()
    stats = house.check()
    print(f"replay network: silence, then {end}: {stats.stored} rows stored, {stats.duplicate} more came late")
    assert end == "drop" or stats.duplicate > 0, "nothing was sent again: it was not silent for long enough"


def silent_until(moment: float, house: House) -> None:
    held = house.acknowledged()
    until(lambda: time.monotonic() > moment, "time passes", 2 * HOLE_S)
    assert house.acknowledged() == held, "something was acknowledged through a connection that carries nothing"


@pytest.mark.prove
def test_a_connection_that_is_dead_for_ever_without_saying_so(house):
    """As when a router forgets it: only a new connection goes through, so someone has to give the old one up."""
    house.play(10)
    house.wait_for_all()
    house.ingest.hole()
    house.play(100)
    house.wait_for_all()
    house.use_all(before=lambda used: house.serve.hole() if used == 40 else None)
    house.check()


def test_answers_to_claims_are_cut_in_the_middle(house):
    house.play(80)
    house.wait_for_all()
    generator = random.Random(2)
    house.use_all(before=lambda used: house.serve.cut_after(generator.randrange(1, 20_000), "down"))
    house.check()
    print(f"replay network: {house.serve.cuts} cuts within answers, {len(house.waiting)} groups used once")
    assert house.serve.cuts >= 3
