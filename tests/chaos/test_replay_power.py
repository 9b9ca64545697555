"""The power is cut: with `durability="power"` every acknowledged turn and commit is there when it comes back.

A service runs under power_cut.c, which keeps a journal of its writes and syncs. It is killed under load; then the disk
is rebuilt as a cut at many moments of that journal could have left it (see power_cut.py) and opened again. What had
been acknowledged when the journal had a certain length must be there after every cut at or behind it.
"""

from __future__ import annotations

import random
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.power_cut import Disk, entries, environment, shim
from support.replay_house import ANY, client_of, endpoints_in, gid, held_in, play, producer_of, serve
from support.waiting import until

from protocols.errors import DeadlineError

DEADLINE_S = 60.0
SYNC_US = 3000  # a slow disk: acting before a sync has ended becomes visible
LAST = 50  # groups that are on their way when it is killed


@pytest.fixture
def place():
    """A folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@dataclass
class Load:
    """What a service was given and acknowledged. Values are lengths of the journal when we heard of it."""

    journal: Path
    stored: dict[bytes, int] = field(default_factory=dict)
    used: dict[bytes, int] = field(default_factory=dict)
    asked: set[bytes] = field(default_factory=set)  # groups whose commit was sent, answered or not

    def moment(self) -> int:
        return self.journal.stat().st_size

    def play(self, producer, group: bytes, shard: str) -> None:
        def heard(done):
            if done.exception() is None:
                self.stored[group] = self.moment()

        play(producer, group, shard).add_done_callback(heard)

    def use_some(self, client, step: int) -> None:
        ids = [group.id for group in client.claim(3, step, ANY, 0.0).groups]
        self.asked.update(ids)
        if ids:
            client.commit(ids, step)
            self.used.update(dict.fromkeys(ids, self.moment()))


def run_until_the_cut(place: Path, library: Path, durability: str, groups: int, seed: int) -> Load:
    """Streams groups to a service that is killed at a random instant; what it acknowledged."""
    (place / "spool").mkdir()
    load, endpoints, generator = Load(place / "journal"), endpoints_in(place), random.Random(seed)
    preload = environment(library, place / "spool", load.journal, sync_us=SYNC_US)
    service = serve(place, endpoints, preload, durability=durability)
    producer, client = producer_of("actor"), client_of(endpoints, "learner")
    try:
        for number in range(groups):
            load.play(producer, gid(0, number), endpoints.ingest)
            if number % 10 == 9:
                least = number - generator.randrange(20)
                until(lambda least=least: len(load.stored) >= least, f"{least} acknowledged groups", DEADLINE_S)
                load.use_some(client, number)
        for number in range(groups, groups + LAST):  # so that it dies under load
            load.play(producer, gid(0, number), endpoints.ingest)
        threading.Event().wait(generator.random() * 0.01)  # the random instant
    finally:
        service.kill()
        with suppress(DeadlineError):  # the rest never will be acknowledged; what was sent before the kill is read
            producer.close(0.2)
        client.close()
    return load


def cuts(place: Path, load: Load, count: int, seed: int) -> dict[Path, int]:
    """Folders with the disk after a cut, and the length of the journal at that cut."""
    generator = random.Random(seed)
    heard = sorted({*load.stored.values(), *load.used.values()})
    chosen = sorted(generator.sample(heard, min(count - 1, len(heard))))
    disk, made, last = Disk(), {}, 0
    for entry in entries(load.journal):
        while chosen and entry.end > chosen[0]:
            made[_cut(place, disk, len(made), seed)] = chosen.pop(0)
        disk.apply(entry)
        last = entry.end
    made[_cut(place, disk, len(made), seed)] = max(last, heard[-1])
    return made


def _cut(place: Path, disk: Disk, number: int, seed: int) -> Path:
    folder = place / f"cut{number}"
    disk.cut(folder / "spool", 100 * seed + number)
    return folder


def lost_by(place: Path, load: Load, made: dict[Path, int]) -> dict[str, list[str]]:
    """What each folder lacks of what had been acknowledged before its cut."""
    held = held_in(place, list(made), {*load.stored, *load.asked})
    lost = {folder.name: lacks(load, made[folder], found) for folder, found in held.items()}
    return {name: some for name, some in lost.items() if some}


def lacks(load: Load, moment: int, held: dict | None) -> list[str]:
    if held is None:
        return ["the spool cannot be opened"]
    known, served = ({bytes.fromhex(group) for group in held[name]} for name in ("known", "served"))
    stored, used = ({group for group, at in heard.items() if at <= moment} for heard in (load.stored, load.used))
    return [
        *(f"turns of {group.hex()}" for group in stored - known),
        *(f"bytes of {group.hex()}" for group in stored & known - served - load.asked),
        *(f"the commit of {group.hex()}" for group in used & served),
        *held["wrong"],
    ]


def cut_the_power(place, library, durability, groups, count, seed):
    load = run_until_the_cut(place, library, durability, groups, seed)
    made = cuts(place, load, count, seed)
    lost = lost_by(place, load, made)
    print(
        f"replay power cuts ({durability}): {len(made)}, acknowledged groups: {len(load.stored)} of {groups + LAST}, "
        f"commits: {len(load.used)}, cuts that lost something: {len(lost)}"
    )
    assert len(load.stored) > groups // 2, "too little was acknowledged to show anything"
    return lost


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return shim(tmp_path_factory.mktemp("shim"))


def test_what_was_acknowledged_survives_a_power_cut(place, library):
    lost = cut_the_power(place, library, "power", groups=300, count=12, seed=1)
    assert not lost, lost


def test_without_that_setting_the_same_cuts_lose_something(place, library):
    """Shows that the test above can fail."""
    assert cut_the_power(place, library, "process", groups=100, count=4, seed=1)


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(2, 8))
def test_what_was_acknowledged_survives_many_power_cuts(place, library, seed):
    lost = cut_the_power(place, library, "power", groups=600, count=60, seed=seed)
    assert not lost, lost
