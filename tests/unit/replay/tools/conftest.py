"""A spool with groups in all states, for the tools that read one."""

import pytest
from support.spool_house import fill


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """The folder `spool` in the working directory."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "spool")
