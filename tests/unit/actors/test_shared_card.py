"""Weights on a GPU that learner and engine share: mapped by CUDA's handle, or brought another way, never wrong.

All is the product's but the driver, which hands out the host's memory: see support.card_house.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest
import torch
from prometheus_client import REGISTRY
from support.card_house import HERE, PROBE, Learner, Workers, built, of, transports, use

from actors.laid_out import LaidOut
from actors.transports import Pinned, Superseded
from actors.weights import check_held
from learner.weights import card as cards
from learner.weights.card import Card
from learner.weights.publish import Versions
from protocols import cuda_ipc, metrics
from protocols.cuda_ipc import HANDLE_BYTES, CudaError, Driver, checked
from protocols.errors import WeightsError

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return built(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def made(driver):
    """A learner whose versions from now on may lie on the GPU."""
    learner = Learner(driver)
    assert not learner.write(0.0).handle, "what training takes is not known before a step"
    yield learner
    learner.close()


@pytest.fixture
def learner(made, driver, monkeypatch):
    use(driver, monkeypatch)
    return made


def value(workers: Workers) -> float:
    """Of the weights that all workers hold."""
    found = {dict(LaidOut(held.data).tensors())["a"].unique().item() for held in workers.held}
    return found.pop() if len(found) == 1 else float("nan")


def shared() -> float:
    return REGISTRY.get_sample_value(metrics.WEIGHTS_FETCHED.name, {"transport": "shared"}) or 0.0


def test_all_workers_map_the_version_itself_and_find_its_digest(learner):
    async def scenario():
        workers, filed = Workers(2), list[int]()
        actor = transports(filed)
        before = shared()
        for number in (2.0, 3.0):
            ref = learner.write(number)
            assert len(ref.handle) == HANDLE_BYTES
            async with actor.fetched(ref, workers, 60.0) as path:
                assert path is None and value(workers) == number
                await check_held(workers, ref)
            assert all(held.data is None for held in workers.held)
        assert not filed and shared() == before + 2 and actor.last == "shared"

    asyncio.run(scenario())


def test_bytes_that_are_not_those_published_are_refused_where_they_lie(learner):
    async def scenario():
        workers, actor = Workers(), transports()
        other = learner.write(2.0)
        ref = replace(learner.write(3.0), buckets=other.buckets)
        async with actor.fetched(ref, workers, 60.0):
            with pytest.raises(WeightsError, match="digest of b to a"):
                await check_held(workers, ref)

    asyncio.run(scenario())


def test_a_version_stays_as_it_is_while_it_is_read_and_the_next_lies_elsewhere_meanwhile(learner):
    async def scenario():
        workers, actor = Workers(), transports()
        ref = learner.write(2.0)
        async with actor.fetched(ref, workers, 60.0):
            later = learner.write(3.0)
            assert not later.handle and value(workers) == 2.0
        assert learner.write(4.0).handle == ref.handle, "its memory is free again"

    asyncio.run(scenario())


def test_who_comes_too_late_is_told_that_there_is_a_newer_version(learner):
    async def scenario():
        workers, filed = Workers(), list[int]()
        actor = transports(filed)
        late, newest = learner.write(2.0), learner.write(3.0)
        with pytest.raises(Superseded):
            async with actor.fetched(late, workers, 60.0):
                pass
        assert filed == [late.version]
        assert learner.blob(late.version) is None and learner.blob(newest.version) is not None

    asyncio.run(scenario())


def test_a_gpu_that_cannot_be_reached_is_tried_once_and_said_once(learner, monkeypatch, caplog):
    async def scenario():
        workers, filed = Workers(2), list[int]()
        actor = transports(filed)
        refs = []
        for number in (2.0, 3.0):
            refs.append(learner.write(number))
            with pytest.raises(Superseded):  # the files of this node are empty
                async with actor.fetched(refs[-1], workers, 60.0):
                    pass
        assert filed == [ref.version for ref in refs]
        assert learner.write(4.0).handle, "nobody holds it back"

    monkeypatch.setenv("DRIVER_REFUSES", "cuIpcOpenMemHandle_v2")
    asyncio.run(scenario())
    (said,) = [record.getMessage() for record in caplog.records]
    assert "peer access is not supported" in said and "another way" in said


def test_memory_that_holds_another_version_is_not_taken_for_it(learner):
    (held,) = Workers().held
    ref = learner.write(2.0)
    assert held.map(ref.handle, ref.size_bytes, "another stamp") == "what is mapped is not the version"
    assert held.data is None and not held._mapped
    assert held.map(ref.handle, ref.size_bytes, ref.stamp) == "" and held.data is not None
    held.drop()


@pytest.mark.parametrize("function", ["cuIpcGetMemHandle", "cuMemAlloc_v2"])
def test_a_learner_whose_gpu_does_not_share_memory_uses_the_host_s_and_says_so_once(driver, function):
    learner = Learner(driver, {"DRIVER_REFUSES": function})
    refs = [learner.write(1.0) for _ in range(3)]
    assert not any(ref.handle for ref in refs)
    (said,) = learner.said()
    assert "in the host's memory" in said and function in said
    learner.close()


def test_a_machine_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr(cuda_ipc, "LIBRARY", "libthere-is-none.so.1")
    with pytest.raises(CudaError, match="driver is not here"):
        Driver()


def test_a_gpu_that_training_fills_keeps_no_version(driver, monkeypatch, caplog):
    use(driver, monkeypatch)
    monkeypatch.setattr(cards, "has_room", lambda device, size: size < 5000)
    versions = Versions(HERE, card=Card("cpu"))
    handles = []
    for version, count in enumerate([1000, 1000, 2000, 1000]):
        versions.write(of(1.0, count), version)
        handles.append(bool(versions.ref(version, PROBE).handle))
    assert handles == [False, True, False, True]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "10% of the GPU" in said


def test_a_trial_is_never_kept_on_the_gpu_and_files_and_broadcasts_find_what_is(driver, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    use(driver, monkeypatch)
    versions = Versions(HERE, card=Card("cpu"))
    for version in (-1, 0, 1):
        placed = versions.write(of(float(version)), version)
    assert [bool(versions.ref(version, PROBE).handle) for version in (-1, 1)] == [False, True]
    assert torch.equal(placed["a"], of(1.0)["a"])
    versions.save(1, tmp_path / "saved")
    assert torch.equal(load_file(tmp_path / "saved")["a"], of(1.0)["a"])
    with versions.reading(1) as data:
        assert len(data) == versions.ref(1, PROBE).size_bytes


def test_a_reader_that_is_killed_holds_nothing_any_more(learner):
    ref = learner.write(2.0)
    pid = os.fork()
    if not pid:
        Pinned(ref)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert learner.write(3.0).handle == ref.handle


def test_a_learner_that_is_killed_keeps_no_reader_waiting(driver, caplog):
    async def scenario():
        learner = Learner(driver)
        workers, filed = Workers(), list[int]()
        actor = transports(filed)
        learner.write(1.0)
        ref = learner.write(2.0)
        learner.process.kill()
        learner.process.wait()
        with pytest.raises(Superseded):
            async with actor.fetched(ref, workers, 60.0):
                pass
        assert filed == [ref.version] and "cannot be mapped" in caplog.text

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("handle", "size"),
    [("x" * 64, 8), (b"x" * 63, 8), (b"", 8), (b"x" * 64, 0), (b"x" * 64, -1), (b"x" * 64, 1.0), (b"x" * 64, True)],
)
def test_what_is_no_handle_and_no_size_is_refused_before_the_driver_is_asked(handle, size):
    with pytest.raises(ValueError, match="shared GPU memory"):
        checked(handle, size)
    (held,) = Workers().held
    with pytest.raises(ValueError, match="shared GPU memory"):
        held.map(handle, size, "stamp")
