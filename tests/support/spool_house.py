"""Spools with groups in all states, ways to damage them, and the service alone, for tests of the tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import lmdb
import numpy as np
from typer.testing import CliRunner

from protocols.turns import Close, Lease, Role, Stop, Turn
from protocols.wire import ENTRY, Row, row_of
from redraft.cli.main import app
from replay.config import Endpoints, ReplaySettings
from replay.disk.reader import SpoolReader
from replay.server.store import Store
from replay.tools.verify import Corruption, Progress, read_all
from support import processes
from support.places import ROOT
from support.waiting import deadline_s

DEADLINE_S = 20.0
USED, READY, CLAIMED, STALE, OPEN, CORRUPT, FORGOTTEN = (bytes([65 + n]) * 16 for n in range(7))
CLOSED = {USED: "used", READY: "ready", CLAIMED: "claimed", STALE: "filtered"}


def turns_of(group, lease=1, turns=3, size=8):
    """All kinds of values: nested facts, NaN, a late reward, versions that change, roles and stops."""
    dice = np.random.default_rng([*group, size])
    items = []
    for n in range(turns):
        logprobs = -dice.random(size, dtype=np.float32)
        logprobs[::7] = np.nan
        items.append(
            Turn(
                group=group,
                lease=lease,
                turn=n,
                parent=n - 1,
                after=n - 1,
                index=n // 2,
                episode=n % 2,
                prompt=dice.integers(0, 50_000, n * 3, dtype=np.int32),
                response=dice.integers(0, 50_000, size, dtype=np.int32),
                logprobs=logprobs,
                versions=((0, 3), (5, 1_000_004)) if n else (),
                role=Role(n % len(Role)),
                stop=Stop(n % len(Stop)),
                reward=0.1 * n,
                terminated=n == turns - 1,
                truncated=n == 0,
                timing=(0.1 * n, 0.2, 1 / 3),
                extra={"visits": n, 7: ["é", {"a": b"\x00"}], "none": None} if n else {},
            )
        )
    return [*items, Close(group, lease, turns, {0: 0.75}, {"value": 1.5, "tree": [1, 2]})]


def put(store, *items, order=5, spread=0.75):
    def work(draft):
        for item in items:
            packed = row_of(item, order, spread if isinstance(item, Close) else 0.0)
            draft.store(Row._make(ENTRY.unpack(packed[0])), packed)

    store.change(work)


def do(store, name, *arguments):
    return store.change(lambda draft: getattr(draft, name)(*arguments))


def fill(folder, run="run"):
    """A spool with a group in each state."""
    store = Store(folder, run, ReplaySettings())
    for n, group in enumerate(CLOSED):
        put(store, *turns_of(group, size=8 if group != USED else 3000), order=n)
    put(store, *turns_of(FORGOTTEN))
    put(store, *turns_of(OPEN)[1:])
    put(store, *turns_of(CORRUPT))
    for group in (USED, CLAIMED, FORGOTTEN):
        do(store, "claim", group, b"learner/1", 1)
    for group in (USED, FORGOTTEN):
        do(store, "commit", group, 12)
    do(store, "filter_stale", STALE, 12)
    do(store, "forget", FORGOTTEN)
    do(store, "discard_corrupt", CORRUPT)
    store.close()
    return folder


def a_run(tmp_path, shards=2, name="r"):
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "run", "model": "m", "ray": ""}))
    for shard in range(shards):
        fill(folder / "spool" / str(shard))
    return folder


def redraft(*arguments):
    """Runs the command here; what it would raise is raised."""
    result = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def damages(folder, run_id=None):
    return [found for found in read_all(Progress(folder), run_id) if isinstance(found, Corruption)]


def stored(folder, group):
    """The values that a group's record and rows are stored as."""
    with SpoolReader(folder) as opened:
        return [dict(opened.groups())[group], *(value for _, value in opened.rows(group))]


def flip(folder, value, place, bits=1):
    """Flips bits of a stored value on the disk, also in pages that are not in use any more."""
    path = folder / "data.mdb"
    data = bytearray(path.read_bytes())
    at, found = data.find(value), 0
    while at >= 0:
        data[at + place] ^= bits
        at, found = data.find(value, at + 1), found + 1
    assert found, "the value was not found on the disk"
    path.write_bytes(data)


def edit(folder, change):
    """Changes the spool as LMDB, past everything that keeps it in order."""
    env = lmdb.open(str(folder), max_dbs=4)
    names = {name: env.open_db(name.encode()) for name in ("rows", "groups", "marks", "meta")}
    with env.begin(write=True) as txn:
        change(txn, names)
    env.close()


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


class Serving:
    """`redraft replay serve` in a process of its own."""

    def __init__(self, folder, *arguments, program=("-m", "redraft"), run="run", **endpoints):
        self._place = tempfile.TemporaryDirectory(dir="/tmp")  # ipc paths are short
        ingest = endpoints.get("ingest", f"ipc://{self._place.name}/i")
        self.endpoints = Endpoints(ingest, endpoints.get("serve", f"ipc://{self._place.name}/s"))
        command = ["replay", "serve", "--folder", str(folder), "--run-id", run]
        command += ["--ingest", self.endpoints.ingest, "--serve", self.endpoints.serve, *map(str, arguments)]
        self.process = processes.start(
            [sys.executable, *program, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self):
        self.ready = self.process.stdout.readline()
        assert "is ready" in self.ready, self.process.stderr.read()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate(timeout=deadline_s(DEADLINE_S))
        self._place.cleanup()

    def end(self, number=None):
        """The exit code, and what was said on stdout and stderr since it was ready."""
        if number is not None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=deadline_s(DEADLINE_S))
        return self.process.returncode, *said


def play(producer, serving, group, **named):
    lease = Lease(group, 1, int.from_bytes(group[:4], "big"), {}, 0, serving.endpoints.ingest)
    for item in turns_of(group, **named):
        done = producer.add(item, lease, 0.75)
    return done
