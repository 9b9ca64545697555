"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "token")  # as redraft.control.cluster: Ray reads it when a test first imports it
settings.register_profile("redraft", deadline=None)  # a busy machine may be slow
settings.load_profile("redraft")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of test data (REDRAFT_DATA, else ../shared/data). Where it is missing: a skip, but a failure in CI."""
    folder = Path(os.environ.get("REDRAFT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        problem = f"no test data at {folder}: set REDRAFT_DATA"
        pytest.fail(problem) if os.environ.get("CI") == "true" else pytest.skip(problem)
    return folder
