"""The disk is full: producers are held back, nothing is acknowledged falsely, nothing is dropped, and it recovers.

(a) a small tmpfs, where it may be mounted; (b) a service under power_cut.c, which fails its writes as a full disk does.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from support import needs
from support.power_cut import environment, shim
from support.replay_house import (
    ANY,
    client_of,
    endpoints_in,
    gid,
    held_in,
    play,
    problem_of,
    producer_of,
    serve,
    turns_of,
)
from support.waiting import deadline_s, until

from protocols.errors import DeadlineError
from replay.config import RESEND_S

DEADLINE_S = 30.0
DISK_BYTES = 24 << 20
FILLED, EMPTIED = "the replay spool has no room", "the replay spool has room again"  # in the log


@pytest.fixture
def place():
    """A folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return shim(tmp_path_factory.mktemp("shim"))


class Shimmed:
    """A disk that is full while a control file exists. `how`: see power_cut.c."""

    def __init__(self, place: Path, library: Path, how: str):
        (place / "spool").mkdir()
        self._control, self._how = place / "full", how
        self.environment = environment(library, place / "spool", place / "journal", full=self._control)

    def fill(self) -> None:
        self._control.write_text(self._how)

    def free(self) -> None:
        self._control.unlink()


class Mounted:
    """A tmpfs. It is full when a second file takes what is left."""

    environment = None

    def __init__(self, place: Path):
        self._spool, self._ballast = place / "spool", place / "spool" / "ballast"
        self._spool.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "replay-test", str(self._spool)]
        if shutil.which("mount") is None:
            needs.missing("there is no mount here: apt-get install mount")
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"run as root to try a full tmpfs: {tried.stderr.strip()}")

    def fill(self) -> None:
        with self._ballast.open("wb") as out:
            left = shutil.disk_usage(self._spool).free - (300 << 10)  # a little room: it fills in the midst of a write
            while left > 0:
                left -= out.write(bytes(min(left, 1 << 20)))

    def free(self) -> None:
        self._ballast.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._spool)], check=True, timeout=deadline_s(DEADLINE_S))


@pytest.fixture
def disk(request, place):
    if request.param != "tmpfs":
        yield Shimmed(place, request.getfixturevalue("library"), request.param)
        return
    mounted = Mounted(place)
    yield mounted
    mounted.unmount()


class House:
    """A service on that disk, with a producer and what it was told."""

    def __init__(self, place: Path, disk):
        self.place, self.disk, self.endpoints = place, disk, endpoints_in(place)
        self.open()
        self.producer, self.client = producer_of("actor"), client_of(self.endpoints, "learner", 10.0)
        self.waiting = {}

    def open(self) -> None:
        self.service = serve(self.place, self.endpoints, self.disk.environment)

    def play(self, numbers) -> None:
        for number in numbers:
            self.waiting[gid(0, number)] = play(self.producer, gid(0, number), self.endpoints.ingest)

    def acknowledged(self) -> set[bytes]:
        return {group for group, done in self.waiting.items() if done.done() and done.exception() is None}

    def full(self) -> bool:
        try:
            return self.client.stats().full
        except DeadlineError as error:
            raise AssertionError(f"{error}; the service said:\n{self.service.said()}") from None

    def held_back(self) -> bool:
        """Whether the producer may start no group for so long that all was sent again."""
        try:
            asyncio.run(self.producer.room(self.endpoints.ingest, 1.5 * RESEND_S))
        except DeadlineError as error:
            assert "replay at" in str(error)
            return True
        return False

    def close(self) -> None:
        self.service.kill()
        try:
            self.producer.close(0.1)
        except DeadlineError:
            pass  # rows were left because a test failed, or ended with a killed service
        self.client.close()


@pytest.fixture
def house(place, disk):
    house = House(place, disk)
    yield house
    house.close()


def fill_up(house: House, before: int = 20, groups: int = 200) -> None:
    """Some groups are stored `before` the disk is full; then more are given, `groups` in all."""
    house.play(range(before))
    until(lambda: len(house.acknowledged()) == before, "the first groups are acknowledged", DEADLINE_S)
    house.disk.fill()
    house.play(range(before, groups))
    until(house.full, "the spool is full", DEADLINE_S)


def on(*disks: str, prove: tuple[str, ...] = ()):
    """On these disks; on those in `prove` only when the long proofs run."""
    needed = {disk: [] if disk == "tmpfs" else [pytest.mark.compiler] for disk in (*disks, *prove)}
    short = [pytest.param(disk, marks=needed[disk]) for disk in disks]
    long = [pytest.param(disk, marks=[*needed[disk], pytest.mark.prove]) for disk in prove]
    return pytest.mark.parametrize("disk", [*short, *long], indirect=True)


@on("short", "tmpfs", prove=("grow", "all"))
def test_a_full_disk_holds_producers_back_and_all_is_stored_when_room_comes(house):
    fill_up(house)
    until(house.held_back, "the producer has no room", DEADLINE_S)
    assert house.full(), "it is still full after every batch was sent again"
    held = len(house.acknowledged())
    assert held < len(house.waiting)
    house.disk.free()
    until(lambda: len(house.acknowledged()) == len(house.waiting), "all is acknowledged", DEADLINE_S)
    assert not house.full()
    assert not house.held_back()
    stats = house.client.stats()
    groups = house.client.claim(len(house.waiting), 0, ANY, DEADLINE_S).groups
    said, unsaid = (house.service.said().count(text) for text in (FILLED, EMPTIED))
    print(f"replay full disk: {held} of {len(house.waiting)} groups acknowledged while full, then all; logged {said} x")
    assert {group.id for group in groups} == set(house.waiting)
    assert not [problem for group in groups if (problem := problem_of(group))]
    rows = sum(turns_of(group) + 1 for group in house.waiting)
    assert (stats.rows, stats.stored, stats.open) == (rows, rows, 0)
    # A small commit may still fit while larger ones do not, and more so on a busy machine: then it is said again.
    assert said == unsaid and 1 <= said < 10, house.service.said()


@on("tmpfs", prove=("short",))
def test_nothing_is_acknowledged_falsely_by_a_service_killed_on_a_full_disk(house):
    fill_up(house)
    house.service.kill()
    with pytest.raises(DeadlineError):
        house.producer.close(0.2)  # reads what was sent before the kill
    told = house.acknowledged()
    copied = house.place / "copy"
    shutil.copytree(house.place / "spool", copied / "spool", ignore=shutil.ignore_patterns("ballast"))
    held = held_in(house.place, [copied], set(house.waiting))[copied]
    assert held is not None, "the spool cannot be opened"
    lost = {group.hex() for group in told} - set(held["served"])
    print(f"replay killed on a full disk: {len(told)} of {len(house.waiting)} groups acknowledged, lost {len(lost)}")
    assert not lost and not held["wrong"], (lost, held["wrong"])
    assert len(told) < len(house.waiting)


@on("grow", prove=("tmpfs",))
def test_a_service_that_starts_on_a_full_disk_recovers_when_room_comes(house):
    fill_up(house)
    house.service.kill()
    house.open()
    until(house.full, "the new service finds the disk full", DEADLINE_S)
    house.disk.free()
    until(lambda: len(house.acknowledged()) == len(house.waiting), "all is acknowledged", DEADLINE_S)
    groups = house.client.claim(len(house.waiting), 0, ANY, DEADLINE_S).groups
    assert {group.id for group in groups} == set(house.waiting)
    assert not [problem for group in groups if (problem := problem_of(group))]


@on("short", prove=("tmpfs",))
def test_checkpoints_make_room_on_a_disk_that_stays_full(house):
    """What was forgotten leaves room within the file: enough of it for what waits, where many groups were held."""
    fill_up(house, before=300, groups=500)
    used, step, began = [], 0, time.monotonic()
    while len(used) < len(house.waiting):
        assert time.monotonic() - began < deadline_s(DEADLINE_S), (
            f"{len(used)} of {len(house.waiting)} used; {house.client.stats()}"
        )
        groups = house.client.claim(4, step, ANY, 1.0).groups
        assert not [problem for group in groups if (problem := problem_of(group))]
        ids = [group.id for group in groups]
        house.client.commit(ids, step)
        house.client.checkpoint(step)
        used, step = used + ids, step + 1
    assert sorted(used) == sorted(house.waiting), "some group was used twice"
    assert len(house.acknowledged()) == len(used)
