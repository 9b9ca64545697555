"""A machine that lacks a library of the system is told so, with the cure, before anything starts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from actors.engines import vllm_common
from protocols.errors import SettingError
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
