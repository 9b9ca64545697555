"""A version is broadcast to all who ask for it; who dies or stands still costs the others no more than a deadline."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import processes
from support.waiting import deadline_s, until

from actors.engines.vllm_held import Held
from learner.weights import collective
from learner.weights.collective import Broadcasts
from learner.weights.publish import Versions
from protocols import broadcast
from protocols.broadcast import REFUSED, Group, Seat
from protocols.weights import TRIAL

PIECE = 1 << 10
HOST = "127.0.0.1"


@pytest.fixture
def house(others, monkeypatch):
    house = House()
    monkeypatch.setattr(collective, "time", SimpleNamespace(monotonic=lambda: house.now))
    return house


class House:
    """A learner's versions and their broadcasts."""

    def __init__(self) -> None:
        self.versions, self.now = Versions(), 0.0
        self.broadcasts = Broadcasts(self.versions, HOST, "cpu", PIECE)

    def write(self, version: int) -> bytes:
        """A new version's bytes."""
        self.versions.write({"a": torch.full((5000,), float(version))}, version)
        with self.versions.reading(version) as data:
            return data.numpy().tobytes()

    def seats(self, version: int, *readers: Reader) -> list[Seat]:
        """Of readers that ask again and again, all at once, as time goes on."""

        def asked() -> list[Any]:
            self.now += 0.3
            found = [self.broadcasts.seat(version, each.name, each.workers, each.group) for each in readers]
            return [] if None in found else found

        return until(asked, "the readers got no seats")


class Reader:
    """One in this process: `workers` that each hold what they receive."""

    def __init__(self, name: str, workers: int = 1):
        self.name, self.workers, self.group = name, workers, 0
        self._held = [Held(torch.device("cpu"), rank) for rank in range(workers)]

    def begin(self, seat: Seat) -> None:
        self.group = seat.group
        for held in self._held:
            held.receive(seat)

    def end(self) -> list[bytes | str]:
        """What each worker holds, or what went wrong."""
        until(lambda: all(held.state() is not None for held in self._held), "no end")
        if any(held.state() for held in self._held):
            self.group = 0
        return [held.state() or bytes(held.data.numpy()) for held in self._held]


def received(seats: list[Seat], *readers: Reader) -> list[list[bytes | str]]:
    for seat, reader in zip(seats, readers, strict=True):
        reader.begin(seat)
    return [reader.end() for reader in readers]


def test_all_who_ask_get_the_same_bytes_each_worker_its_own_and_keep_their_group(house):
    one, two = Reader("one"), Reader("two", workers=2)
    groups = set()
    for version in (1, 2, 3):
        data = house.write(version)
        seats = house.seats(version, one, two)
        groups |= {seat.group for seat in seats}
        assert received(seats, one, two) == [[data], [data, data]]
    assert len(groups) == 1


def test_who_comes_later_is_refused_and_takes_part_in_the_next_in_a_new_group(house):
    one, late = Reader("one"), Reader("late")
    data = house.write(1)
    seats = house.seats(1, one)
    assert house.seats(1, late) == [REFUSED] and received(seats, one) == [[data]]
    data = house.write(2)
    assert house.broadcasts.seat(2, one.name, 1, one.group) is None, "it is waited for"
    both = house.seats(2, one, late)
    assert received(both, one, late) == [[data], [data]] and both[0].group != seats[0].group


def test_who_has_gone_is_waited_for_once_and_the_group_is_made_anew(house):
    one, gone = Reader("one"), Reader("gone")
    house.write(1)
    received(house.seats(1, one, gone), one, gone)
    for version in (2, 3):
        data = house.write(version)
        assert received(house.seats(version, one), one) == [[data]]
    house.write(4)

    def seated() -> bool:
        """As soon as the broadcast before has ended, while the clock stands still."""
        return house.broadcasts.seat(4, one.name, 1, one.group) is not None

    until(seated, "nobody else is waited for")


def test_only_the_newest_version_is_broadcast_and_never_the_trial(house):
    for version in (TRIAL, 1, 2):
        house.write(version)
    assert house.broadcasts.seat(TRIAL, "one", 1, 0) == house.broadcasts.seat(1, "one", 1, 0) == REFUSED


def test_a_version_stays_as_it_is_while_it_is_broadcast(house, monkeypatch):
    halting = Halting(monkeypatch)
    one, data = Reader("one"), house.write(1)
    one.begin(*house.seats(1, one))
    halting.halted.wait(deadline_s(10.0))
    for version in range(2, 6):
        house.write(version)
    halting.go.set()
    assert one.end() == [data]


class Halting:
    """Has broadcasts halt after two pieces until they are let go on."""

    def __init__(self, monkeypatch) -> None:
        self.halted, self.go = threading.Event(), threading.Event()

        def part_by_part(group: Group, data, piece_bytes: int, device: str) -> None:
            whole(group, data[: 2 * piece_bytes], piece_bytes, device)
            self.halted.set()
            self.go.wait()
            whole(group, data[2 * piece_bytes :], piece_bytes, device)

        whole = Group.broadcast
        monkeypatch.setattr(collective, "Group", type("Halted", (Group,), {"broadcast": part_by_part}))


def test_a_broadcast_that_never_ends_is_left_behind_and_the_next_versions_go_on(house, monkeypatch):
    one, hangs = Reader("one"), Halting(monkeypatch)
    first = house.write(1)
    one.begin(*house.seats(1, one))
    assert hangs.halted.wait(deadline_s(10.0))
    house.now += collective.JOIN_S + 1000 * collective.PIECE_S
    house.write(2)
    assert house.seats(2, one) == [REFUSED]
    hangs.go.set()
    assert one.end() == [first]
    data = house.write(3)
    assert received(house.seats(3, one), one) == [[data]]


def test_a_learner_that_began_anew_has_groups_of_its_own(house):
    one = Reader("one")
    data = house.write(1)
    assert received(house.seats(1, one), one) == [[data]]
    House.__init__(house)
    data = house.write(1)
    assert received(house.seats(1, one), one) == [[data]]


RECEIVER = """
import json, sys, torch
from actors.engines.vllm_held import Held
from protocols.broadcast import Seat
held = Held(torch.device("cpu"), 0)
print("ready", flush=True)
held.receive(Seat(**json.loads(sys.stdin.readline())))
held._thread.join()
"""


@pytest.fixture(scope="module")
def others():
    """Processes that each take the seat that they are told; they have begun long before they are needed."""
    made = [processes.start([sys.executable, "-c", RECEIVER], stdin=-1, stdout=-1) for _ in range(2)]
    yield list(made)
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_member_that_is_killed_or_stands_still_costs_the_others_no_more_than_a_deadline(
    house, others, monkeypatch, how
):
    with monkeypatch.context() as patched:
        patched.setattr(broadcast, "PIECE_S", 1.0)
        lose_a_member(house, Halting(patched), others.pop(), how)
    one, joining, data = Reader("one"), Reader("joining"), house.write(2)
    assert received(house.seats(2, one, joining), one, joining) == [[data], [data]]


def lose_a_member(house, halting, other, how) -> None:
    one, victim = Reader("one"), Reader("victim")
    house.write(1)
    mine, its = house.seats(1, one, victim)
    other.stdout.readline()
    other.stdin.write(json.dumps(asdict(its)).encode() + b"\n")
    other.stdin.flush()
    one.begin(mine)
    halting.halted.wait(deadline_s(10.0))
    os.kill(other.pid, how)
    halting.go.set()
    one.end()  # it has it, or hears that it failed
    until(lambda: house.broadcasts._group is None, "the learner does not notice")
    other.kill()
    other.wait()


def test_a_member_that_never_comes_costs_the_others_no_more_than_a_deadline(house, monkeypatch):
    monkeypatch.setattr(broadcast, "JOIN_S", 0.5)
    one, absent = Reader("one"), Reader("absent")
    house.write(1)
    one.begin(house.seats(1, one, absent)[0])
    (problem,) = one.end()
    assert isinstance(problem, str) and problem


def test_failures_in_a_row_leave_out_more_and_more_versions_until_one_succeeds(house, monkeypatch):
    monkeypatch.setattr(broadcast, "JOIN_S", 0.2)
    one, tried = Reader("one"), []
    for version in range(1, 10):
        house.write(version)
        (seat,) = house.seats(version, one)
        if seat != REFUSED:
            tried.append(version)
            until(lambda: not house.broadcasts._sending.is_alive(), "the broadcast to nobody does not end")
    assert tried == [1, 2, 4, 8]
