"""A machine that lacks a library of the system is told so, with the cure, before anything starts."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from support.nvml_library import Library

from actors.engines import vllm_common
from protocols.errors import SettingError
from protocols.nvml import Nvml
from redraft.cli import doctor


def said() -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200, record=True)
    return doctor.examine(console), console.export_text()


def test_a_library_that_vllm_cannot_load_is_named_with_its_cure(monkeypatch):
    vllm_common.check_libraries()
    assert vllm_common.NUMA not in said()[1]
    monkeypatch.setattr(vllm_common, "NUMA", "libmissing.so.1")
    with pytest.raises(SettingError, match=r"actors\.engine\.name: .*libmissing\.so\.1.*libnuma1"):
        vllm_common.check_libraries()
    good, text = said()
    assert not good and "missing libmissing.so.1" in text and "libnuma1" in text


@pytest.mark.parametrize(("version", "good"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), True)])
def test_every_python_that_is_supported_is_good(monkeypatch, version, good):
    monkeypatch.setattr(sys, "version_info", (*version, 1))
    check = next(iter(doctor._software()))
    assert (check.good, bool(check.cure)) == (good, not good)


def test_gpus_are_told_with_memory_driver_and_what_is_in_use():
    library = Nvml(Library())
    assert [(gpu.busy, gpu.watts) for gpu in library.gpus()] == [(0.4, 350.0), (0.4, None)]
    checks = list(doctor.gpus([("Card", 80 << 30)] * 2, library, ""))
    assert [check.what for check in checks] == [
        "2 GPUs: Card, 80 GiB each",
        "NVIDIA driver 580.1; NVML answers, 3.0 GiB of the GPUs' memory are in use",
    ]
    (card, without) = doctor.gpus([("Card", 80 << 30)], None, "Driver Not Loaded")
    assert card.what == "1 GPU: Card, 80 GiB" and without.good is None and "Driver Not Loaded" in without.what
