"""A process tells of the GPUs that it was given, and of none where there are none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY
from support import processes
from support.nvml_library import UUIDS, Library
from support.waiting import deadline_s

from protocols import nvml
from protocols.nvml import GpuWatch, Nvml

FIGURES = ("gpu_busy_share", "gpu_used_bytes", "gpu_memory_bytes", "gpu_watts", "gpu_process_bytes")


def exported(gpu: str) -> list[float | None]:
    return [REGISTRY.get_sample_value(f"redraft_{name}", {"gpu": gpu}) for name in FIGURES]


def test_it_tells_of_those_that_it_was_given_by_number_or_by_uuid_and_of_no_other():
    library = Library()
    for given in ("1", UUIDS[1]):
        watch = GpuWatch(Nvml(library), [given])
        watch.look()
        assert [(gpu.number, gpu.busy, gpu.watts) for gpu in watch.newest] == [(1, 0.4, None)]
        assert exported("1") == [0.4, 2 << 30, 80 << 30, None, None], "what the GPU does not tell has no series"
        assert exported("0") == [None] * 5


def test_memory_is_told_apart_from_that_of_others_on_the_same_gpu():
    library = Library()
    library.running = {0: [(os.getpid(), 5 << 30), (1, 70 << 30)]}
    child = processes.start([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    library.running[0].append((child.pid, 2 << 30))
    watch = GpuWatch(Nvml(library), ["0"])
    watch.look()
    assert watch.newest[0].own_bytes == 7 << 30, "its own, and that of an engine which it has started"
    child.communicate(b"\n", timeout=deadline_s(30))


def test_a_gpu_that_is_lost_has_no_figures_until_it_is_back_and_is_logged_once(caplog):
    library = Library()
    watch = GpuWatch(Nvml(library), ["0"])
    watch.look()
    assert exported("0")[0] == 0.4
    library.gone = True
    with caplog.at_level(logging.WARNING, "redraft.nvml"):
        watch.look()
        watch.look()
    assert (watch.newest, exported("0")) == ((), [None] * 5)
    assert [record.message for record in caplog.records] == [
        "NVML says nothing of the GPUs of this process: GPU is lost"
    ]
    library.gone = False
    watch.look()
    assert exported("0")[0] == 0.4


@pytest.mark.parametrize(
    ("text", "found"), [(None, None), ("", []), ("1", ["1"]), ("0,3", ["0", "3"]), ("GPU-aa,", ["GPU-aa"])]
)
def test_the_gpus_of_a_process_are_those_that_cuda_is_told(monkeypatch, text, found):
    monkeypatch.delenv(nvml.DEVICES, raising=False)
    if text is not None:
        monkeypatch.setenv(nvml.DEVICES, text)
    assert nvml.given() == found


def test_without_a_gpu_of_its_own_or_without_nvml_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(nvml, "find", lambda: (None, "nvidia-ml-py is not installed"))
    assert nvml.watch(1.0) is None
    monkeypatch.setattr(nvml, "find", lambda: pytest.fail("a process without GPUs asks nobody"))
    assert nvml.watch(0.0) is None
