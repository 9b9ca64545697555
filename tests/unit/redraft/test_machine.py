"""A run says on which machine it ran, whatever the machine tells of itself."""

import os

import pytest

from redraft.machine import cores, described

CPU = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\n"


def test_a_machine_is_its_processor_cores_memory_and_gpus(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPU * 2)
    (tmp_path / "meminfo").write_text("MemTotal:       25165824 kB\nMemFree:        1 kB\n")
    for slot in range(2):
        gpu = tmp_path / "driver" / "nvidia" / "gpus" / f"0000:0{slot}:00.0"
        gpu.mkdir(parents=True)
        (gpu / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 12\n")
    name, cores, memory, gpus = described(tmp_path).split(", ")
    assert (name, memory, gpus) == ("Intel Xeon Platinum 8481C", "24 GiB", "2 x NVIDIA H100 80GB HBM3")
    assert int(cores.removesuffix("s").removesuffix(" core")) >= 1


def test_a_machine_that_tells_nothing_has_its_architecture_and_no_gpu(tmp_path):
    architecture, _, gpus = described(tmp_path).split(", ")
    assert architecture and gpus == "no GPU"


QUOTAS = [("max 100000\n", None), ("50000 100000\n", 1), ("100001 100000\n", 2), ("?", None), (None, None)]


@pytest.mark.parametrize(("quota", "share"), QUOTAS)
def test_a_container_with_a_limit_has_as_many_cores_as_that_gives(tmp_path, quota, share):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    most = len(os.sched_getaffinity(0))
    assert cores(tmp_path / "cpu.max") == (most if share is None else min(most, share))
