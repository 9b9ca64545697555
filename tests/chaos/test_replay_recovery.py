"""A service that was killed with a gigabyte in its spool is back within seconds, however large its turns are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import processes
from support.replay_house import client_of, endpoints_in, serve
from support.waiting import deadline_s

from replay.config import ReplaySettings
from replay.server.store import Store

GROUPS, TURNS = 14_500, 8
FILL = """
import sys
from pathlib import Path
from protocols.wire import CLOSE, CRC, ENTRY, Row
from zlib import crc32
from replay.config import ReplaySettings
from replay.server.store import Store
folder, groups, turns, size = sys.argv[1], *map(int, sys.argv[2:])
store = Store(Path(folder), "run", ReplaySettings())
record = bytes(size)

def row(group, turn):
    fields = (group.to_bytes(16, "little"), 0, turn, 0, group, turns if turn == CLOSE else 0, 1.0, size)
    unsummed = ENTRY.pack(*fields, 0)[: -CRC.size]
    crc = crc32(unsummed, crc32(record))
    return Row(*fields, crc), (unsummed + CRC.pack(crc), record)

for start in range(0, groups, 20):
    rows = [row(group, turn) for group in range(start, min(start + 20, groups)) for turn in (CLOSE, *range(turns))]
    store.change(lambda draft: [draft.store(*one) for one in rows])
print("filled", store.groups.bytes, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def filled(folder: Path, groups: int, size: int) -> int:
    """Fills a spool from a process that is then killed; returns the bytes that it held."""
    folder.mkdir(parents=True)
    process = processes.start(
        [sys.executable, "-c", FILL, str(folder), str(groups), str(TURNS), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        said = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    assert said[:1] == [b"filled"]
    return int(said[1])


def opened_s(folder: Path) -> float:
    """The shorter of two times that opening a spool takes."""
    times = []
    for _ in range(2):
        began = time.monotonic()
        Store(folder, "run", ReplaySettings()).close()
        times.append(time.monotonic() - began)
    return min(times)


def test_a_gigabyte_is_there_again_within_five_seconds(place):
    held = filled(place / "spool", GROUPS, 9000)
    assert held >= 1e9
    began = time.monotonic()
    service = serve(place, endpoints_in(place))
    client = client_of(endpoints_in(place), "learner")
    stats = client.stats()
    seconds = time.monotonic() - began
    client.close()
    service.kill()
    print(f"{held / 1e9:.2f} GB in {stats.ready} groups: served again {seconds:.2f} s after the kill")
    assert (stats.ready, stats.bytes) == (GROUPS, held)
    assert seconds < deadline_s(5)


def test_opening_costs_by_the_group_and_not_by_the_byte(place):
    for name, groups, size in (("small", 3000, 90), ("large", 3000, 9000), ("many", 12_000, 90)):
        filled(place / name, groups, size)
    small, large, many = (opened_s(place / name) for name in ("small", "large", "many"))
    figures = [f"{seconds * 1000:.0f} ms" for seconds in (small, large, many)]
    print(f"3,000 groups of 1 KB {figures[0]}, of 81 KB {figures[1]}; 12,000 groups of 1 KB {figures[2]}")
    assert large < 2 * small + 0.05
    assert many < 8 * small + 0.05
