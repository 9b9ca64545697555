"""How weights reach a node: memory that stays as it is while it is read, or one file, gone when nobody reads it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from ray.exceptions import ActorDiedError
from support import processes
from support.published import Published
from support.waiting import deadline_s

from actors import collective, transports
from learner.weights.memory import HostBuffer
from learner.weights.publish import Versions
from protocols import metrics
from protocols.checksum import Sums
from protocols.errors import RedraftError
from protocols.weights import Probe, WeightRef

PROBE = Probe((), (), 0.0)
HERE, ELSEWHERE = "this node", "another node"
WITHOUT_WORKERS: Any = SimpleNamespace(workers=0)


@pytest.fixture
def shm(tmp_path, monkeypatch):
    monkeypatch.setattr(transports, "FOLDER", tmp_path)
    return tmp_path


def remote(function: Callable) -> Any:
    """What Ray makes of an actor's method."""

    async def called(*arguments):
        result = function(*arguments)
        return await result if asyncio.iscoroutine(result) else result

    return SimpleNamespace(remote=called)


def learner(held: Callable[[int], np.ndarray | None]) -> Any:
    """The handle of a learner that puts versions into an object store."""

    def blob(version: int) -> list:
        data = held(version)
        if data is None:
            return []
        put = asyncio.get_running_loop().create_future()
        put.set_result(data)
        return [put]

    return SimpleNamespace(blob=remote(blob))


def ref(version: int, held: Callable = lambda version: np.full(100, version, np.uint8)) -> WeightRef:
    return WeightRef(version, 100, Sums(), (), PROBE, source=learner(held))


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_all_readers_of_a_version_share_one_file_and_it_goes_when_it_is_old_and_unread(shm):
    async def scenario():
        files = transports.NodeFiles("run")
        first, same = await files.provide(ref(1), "a"), await files.provide(ref(1), "b")
        assert first and first == same and open(first, "rb").read() == bytes([1]) * 100
        await files.done("a")
        second = await files.provide(ref(2), "a")
        assert names(shm) == ["1.safetensors", "2.safetensors"], "b still reads version 1"
        await files.done("b")
        assert names(shm) == ["2.safetensors"]
        await files.done("a")
        assert names(shm) == ["2.safetensors"], "the newest stays for an actor that starts"
        assert second and second.endswith("2.safetensors")
        await files.close()
        assert not list(shm.iterdir())

    asyncio.run(scenario())


def test_nothing_is_left_of_a_version_that_is_being_written_when_the_run_ends(shm, monkeypatch):
    writes, goes_on = threading.Event(), threading.Event()

    def late(path: Path, data: np.ndarray) -> None:
        """As where the file is made after its folder's names were read, and before the folder is removed."""
        writes.set()
        assert goes_on.wait(60)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr(transports, "_write", late)

    async def scenario():
        files = transports.NodeFiles("run")
        reading = asyncio.ensure_future(files.provide(ref(1), "a"))
        assert await asyncio.to_thread(writes.wait, 60)
        closing = asyncio.ensure_future(files.close())
        asyncio.get_running_loop().call_soon(goes_on.set)
        await asyncio.gather(closing, reading)
        assert await files.provide(ref(2), "a") is None, "the run has ended"
        assert not list(shm.iterdir())

    asyncio.run(scenario())


def test_a_version_of_a_learner_that_has_died_is_to_be_had_no_more_and_the_next_one_is(shm):
    def dead(version: int) -> None:
        raise ActorDiedError()

    async def scenario():
        files = transports.NodeFiles("run")
        assert await files.provide(ref(1, dead), "a") is None
        assert await files.provide(ref(2), "a")

    asyncio.run(scenario())


def test_the_trial_of_a_learner_that_began_anew_is_not_that_of_the_one_before(shm):
    """Its number is the same. No newer version has come by this way: those are broadcast."""

    def trial(stamp: str, value: int) -> WeightRef:
        return replace(ref(-1, lambda _: np.full(100, value, np.uint8)), stamp=stamp)

    async def scenario():
        files = transports.NodeFiles("run")
        for stamp, value in (("one/-1", 1), ("other/-1", 2)):
            path = await files.provide(trial(stamp, value), "a")
            assert path and open(path, "rb").read() == bytes([value]) * 100
            await files.done("a")
        assert names(shm) == ["-1-other--1.safetensors"]
        await files.close()

    asyncio.run(scenario())


def test_what_a_reader_has_pinned_stays_to_be_read_when_the_learner_has_ended():
    buffer = HostBuffer(8)
    buffer.begin(b'"stamp"')
    named: Any = SimpleNamespace(path=buffer.path, stamp="stamp")
    with transports.Pinned(named) as pinned:
        buffer.close()
        assert pinned.path.read_bytes() == b'"stamp"\0'
    assert not pinned.path.exists()


def test_a_reader_that_died_does_not_keep_a_file_for_ever(shm):
    async def scenario():
        files = transports.NodeFiles("run")
        await files.provide(ref(1), "a")  # a dies, is restarted under its name, and asks for the newest
        await files.provide(ref(2), "a")
        assert names(shm) == ["2.safetensors"]

    asyncio.run(scenario())


def test_a_node_without_room_for_a_version_says_so_and_how_to_give_it_some(shm, monkeypatch):
    monkeypatch.setattr(transports.shutil, "disk_usage", lambda folder: SimpleNamespace(free=64))

    async def scenario():
        files = transports.NodeFiles("run")
        with pytest.raises(RedraftError, match="--shm-size"):
            await files.provide(ref(1), "a")
        monkeypatch.undo()
        monkeypatch.setattr(transports, "FOLDER", shm)
        assert await files.provide(ref(1), "a"), "another try is made"

    asyncio.run(scenario())


def of(value: float, count: int = 1000) -> dict[str, torch.Tensor]:
    return {"a": torch.full((count,), value), "b": torch.arange(7, dtype=torch.int64)}


class Node:
    """An actor's transports, and what they have said and counted."""

    def __init__(self, node: str = HERE):
        self._files = transports.NodeFiles(f"run {node}")
        handle = SimpleNamespace(provide=remote(self._files.provide), done=remote(self._files.done))

        async def files():
            return handle

        self._transports = transports.Transports(node, "actor-0", files)

    async def read(self, ref: WeightRef) -> bytes:
        async with self.fetched(ref) as path:
            return path.read_bytes()

    def fetched(self, ref: WeightRef):
        return self._transports.fetched(ref, WITHOUT_WORKERS, 60.0)


def fetched() -> dict[str, float]:
    name = metrics.WEIGHTS_FETCHED.name
    ways = ("shared", "object_store")
    return {way: REGISTRY.get_sample_value(name, {"transport": way}) or 0.0 for way in ways}


def test_a_run_on_two_nodes_shares_memory_on_the_learner_s_and_sends_the_same_bytes_to_the_other(shm):
    async def scenario():
        versions = Versions(HERE)
        versions.write(of(1.0), 1)
        versions._source = learner(lambda version: np.fromfile(versions.ref(version, PROBE).path, np.uint8))
        announced = versions.ref(1, PROBE)
        before = fetched()
        near, far = await Node(HERE).read(announced), await Node(ELSEWHERE).read(announced)
        assert near == far and len(near) == announced.size_bytes
        assert fetched() == {way: count + 1 for way, count in before.items()}

    asyncio.run(scenario())


def test_memory_that_cannot_be_mapped_is_replaced_by_the_object_store_and_that_is_said_once(shm, caplog):
    async def scenario():
        node = Node()
        for version in (1, 2):
            gone = WeightRef(
                version, 100, Sums(), (), PROBE, HERE, "/proc/0/fd/1", "stamp", ref(version).source
            )  # a learner in another container, say
            assert await node.read(gone) == bytes([version]) * 100

    asyncio.run(scenario())
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cannot be mapped" in said and "another way" in said


def test_a_version_stays_as_it_is_while_it_is_read_however_many_come_meanwhile(shm):
    async def scenario():
        versions, node = Versions(HERE), Node()
        versions.write(of(1.0), 1)
        announced = versions.ref(1, PROBE)
        async with node.fetched(announced) as path:
            before = path.read_bytes()
            for version in range(2, 6):
                versions.write(of(float(version)), version)
            assert path.read_bytes() == before
        for version in range(6, 9):
            versions.write(of(float(version)), version)
        newest = versions.ref(8, PROBE)
        assert np.frombuffer(await node.read(newest), np.float32)[-900] == 8.0
        return announced, node

    asyncio.run(scenario())


def test_an_actor_that_comes_too_late_for_a_version_is_told_that_there_is_a_newer_one(shm):
    async def scenario():
        versions, node = Versions(HERE, learner(lambda version: None)), Node()
        versions.write(of(1.0), 1)
        late = versions.ref(1, PROBE)
        for version in range(2, 12):  # 11 begins as 1 does
            versions.write(of(2.0), version)
        assert versions.ref(11, PROBE).path == late.path, "its memory is in use again"
        with pytest.raises(transports.Superseded):
            await node.read(late)

    asyncio.run(scenario())


def test_workers_that_hang_hold_up_neither_the_update_nor_its_time_limit(shm, monkeypatch, caplog):
    monkeypatch.setattr(collective, "DROP_S", 0.05)

    class Hangs:
        workers = 1

        async def ask(self, method: str, *arguments: Any) -> list[Any]:
            if method == collective.DROP:
                await asyncio.Event().wait()
            return [""]

    async def scenario():
        node, engine = Node(), Hangs()
        node._transports._receiver.received = lambda *_: asyncio.sleep(0, True)
        elsewhere: Any = SimpleNamespace(version=1, path="", node=ELSEWHERE, handle=b"")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), node._transports.fetched(elsewhere, engine, 60.0):
                await asyncio.Event().wait()

    asyncio.run(asyncio.wait_for(scenario(), deadline_s(20)))
    assert "did not let go of a version" in caplog.text


def test_a_reader_that_is_killed_holds_nothing_any_more(shm):
    versions = Versions(HERE)
    versions.write(of(1.0), 1)
    path = versions.ref(1, PROBE).path
    code = f"import fcntl, os; fcntl.flock(os.open({path!r}, os.O_RDONLY), fcntl.LOCK_SH); print(flush=True); input()"
    reader = processes.start([sys.executable, "-c", code], stdin=-1, stdout=-1)
    reader.stdout.readline()
    versions.write(of(2.0), 2)
    versions.write(of(3.0), 3)
    assert versions.ref(3, PROBE).path != path, "it is being read"
    reader.kill()
    reader.wait()
    versions.write(of(4.0), 4)
    versions.write(of(5.0), 5)
    assert path in (versions.ref(5, PROBE).path, versions._memory.take(versions.ref(5, PROBE).size_bytes).path)


def test_a_learner_that_is_killed_leaves_no_memory_behind():
    code = "from learner.weights.memory import HostBuffer; made = HostBuffer(64); print(made.path, flush=True); input()"
    learner = processes.start([sys.executable, "-c", code], stdin=-1, stdout=-1)
    path = learner.stdout.readline().decode().strip()
    assert os.path.exists(path)
    learner.kill()
    learner.wait()
    assert not os.path.exists(path)


def test_the_trial_stays_for_actors_that_start_later(shm):
    async def scenario():
        versions = Versions(HERE)
        versions.write(of(-1.0), -1)
        for version in range(5):
            versions.write(of(float(version)), version)
        assert np.frombuffer(await Node().read(versions.ref(-1, PROBE)), np.float32)[-900] == -1.0

    asyncio.run(scenario())


def test_published_bytes_are_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    state = of(3.0) | {
        "odd": torch.ones(3, dtype=torch.bfloat16),
        "one": torch.tensor(2.0),
        "none": torch.ones(0, 4),
    }
    made = Published(state, 1, PROBE)
    found = load_file(made.path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
