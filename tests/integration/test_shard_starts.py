"""Whoever waits for a replay service waits through its death: Ray starts it again, and it is asked again."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from support.places import PYTHONPATH
from support.waiting import deadline_s, until

from protocols.errors import DeadlineError
from redraft.control.shards import where_it_serves

pytestmark = pytest.mark.ray


class Service:
    """Starts once the file is there; the first of its processes needs none."""

    def __init__(self, gate: str, first: str):
        if Path(first).exists():
            until(Path(gate).exists, "it may start", 600)
        Path(first).touch()

    def serves(self) -> tuple[str, int]:
        return "127.0.0.1", os.getpid()


@pytest.fixture(scope="module", autouse=True)
def cluster():
    paths = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def died(tmp_path):
    """A service whose process was killed and whose next one does not start yet; its gate, and the dead one's id."""
    gate = tmp_path / "gate"
    part = ray.remote(num_cpus=0, max_restarts=-1)(Service).remote(str(gate), str(tmp_path / "first"))
    _, pid = where_it_serves(part, time.monotonic(), deadline_s(60))
    os.kill(pid, 9)
    until(lambda: _unavailable(part), "the service is gone", 30)
    yield part, gate, pid
    gate.touch()
    ray.kill(part)


def _unavailable(part) -> bool:
    try:
        ray.get(part.serves.remote(), timeout=5)
    except (ActorUnavailableError, GetTimeoutError):
        return True
    return False


def test_a_service_that_died_is_waited_for_until_it_is_back(died):
    part, gate, pid = died
    found: list[tuple[str, int]] = []
    limit_s = deadline_s(60)
    asking = threading.Thread(target=lambda: found.append(where_it_serves(part, time.monotonic(), limit_s)))
    asking.start()
    gate.touch()
    asking.join(limit_s)
    assert found and found[0][1] != pid


def test_one_that_does_not_come_back_is_named_when_the_time_is_over(died):
    part, _, _ = died
    with pytest.raises(DeadlineError, match="the controller timed out after 1 s waiting for replay"):
        where_it_serves(part, time.monotonic(), 1)
