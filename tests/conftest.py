"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import needs, processes, suite_end
from support.places import ROOT
from support.waiting import deadline_s

os.environ.setdefault("RAY_AUTH_MODE", "token")  # as redraft.control.cluster: Ray reads it when a test first imports it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torch's threads wait for each other beside any other busy process
settings.register_profile("redraft", deadline=None)  # a busy machine may be slow
settings.load_profile("redraft")


SUITE = suite_end.begin()
END_S = 20.0  # that processes of the suite have to end when it has
LONGEST_S = 900.0  # of one test, on a quiet machine: a hang ends with the stacks of all threads


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs.mark(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.check(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """The limit of a test that names none follows how busy the machine is when it begins."""
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(deadline_s(LONGEST_S)))
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A suite that leaves something behind has failed."""
    if hasattr(session.config, "workerinput"):
        return  # whoever started this worker of xdist looks at all that they leave
    folders = getattr(session.config, "_tmp_path_factory", None)
    if left := suite_end.left(SUITE, folders and folders.getbasetemp(), deadline_s(END_S)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("\nleft behind: " + "\nleft behind: ".join(left), red=True)


@pytest.fixture(autouse=True, scope="module")
def processes_end_with_their_file() -> Iterator[None]:
    """Ends what the fixtures of a file started, where they failed to."""
    begun = processes.mark()
    yield
    processes.end(begun)


@pytest.fixture(autouse=True)
def processes_end_with_their_test(processes_end_with_their_file: None) -> Iterator[None]:
    """Ends what a test started, where it failed to."""
    begun = processes.mark()
    yield
    processes.end(begun)


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """A function that finds a data set by its name; where it is missing the test is skipped (see tests/README.md)."""
    root = Path(os.environ.get("REDRAFT_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            needs.missing(
                f"no data set {name}: tests/README.md says how to get it; set REDRAFT_DATA to its parent folder"
            )
        return root / name

    return find
