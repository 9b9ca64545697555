"""Weight files on a node: one a version, gone when nobody reads it, swept when a dead run left it."""

import asyncio
import os
import sys

import numpy as np
import pytest
from support import processes

from actors import weights
from protocols.weights import Probe, WeightRef


@pytest.fixture
def shm(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path


def ref(version: int) -> WeightRef:
    blob = asyncio.get_running_loop().create_future()
    blob.set_result(np.full(100, version, np.uint8))
    return WeightRef(version, f"digest-{version}", 100, blob, Probe((), (), 0.0), "")


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_all_readers_of_a_version_share_one_file_and_it_goes_when_it_is_old_and_unread(shm):
    async def scenario():
        files = weights.NodeFiles("run")
        first, same = await files.provide(ref(1), "a"), await files.provide(ref(1), "b")
        assert first == same and open(first, "rb").read() == bytes([1]) * 100
        await files.done("a")
        second = await files.provide(ref(2), "a")
        assert names(shm) == ["1.safetensors", "2.safetensors"], "b still reads version 1"
        await files.done("b")
        assert names(shm) == ["2.safetensors"]
        await files.done("a")
        assert names(shm) == ["2.safetensors"], "the newest stays for an actor that starts"
        assert second.endswith("2.safetensors")
        await files.close()
        assert not list(shm.iterdir())

    asyncio.run(scenario())


def test_a_reader_that_died_does_not_keep_a_file_for_ever(shm):
    async def scenario():
        files = weights.NodeFiles("run")
        await files.provide(ref(1), "a")  # a dies, is restarted under its name, and asks for the newest
        await files.provide(ref(2), "a")
        assert names(shm) == ["2.safetensors"]

    asyncio.run(scenario())


def test_what_a_dead_run_left_is_swept_and_a_living_one_is_left_alone(shm):
    ended = processes.start([sys.executable, "-c", ""])
    ended.wait()
    dead, living = shm / f"redraft-old-{ended.pid}", shm / f"redraft-now-{os.getpid()}"
    for folder in (dead, living, shm / "other"):
        folder.mkdir()
        (folder / "1.safetensors").touch()
    assert weights.sweep() == [dead]
    assert living.exists() and (shm / "other").exists() and not dead.exists()
