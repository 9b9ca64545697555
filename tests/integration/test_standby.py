"""A process that stands by becomes the part that Ray needs next; it holds for the release of Ray that is pinned."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from support.places import PYTHONPATH
from support.waiting import until

from actors.config import EngineSettings
from redraft.control import standby
from redraft.control.workers import worker_environment

pytestmark = pytest.mark.ray

SCRIPTED = EngineSettings(name="scripted")  # of which nothing has to be imported


class Small:
    """A part, for Ray."""

    def pid(self) -> int:
        return os.getpid()

    def keep(self) -> None:
        standby.keep()


@pytest.fixture(scope="module", autouse=True)
def cluster():
    path = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def parts(count: int, run: str) -> list[Any]:
    """Of a run, which Ray restarts when they die."""
    environment = worker_environment(1, standby.variables(Small, run, SCRIPTED))
    environment["env_vars"]["PYTHONPATH"] = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))
    made = ray.remote(Small).options(num_cpus=0, max_restarts=-1, runtime_env=environment)
    return [made.remote() for _ in range(count)]


def standing_by(run: str) -> set[int]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if f'"run": "{run}"' in child.environ().get(standby.VARIABLE, "") and child.cmdline()[0] == standby.IDLE:
                found.add(child.pid)
        except (psutil.Error, IndexError):
            continue
    return found


def back(part: Any) -> int:
    """Its pid, once it lives again."""
    while True:
        try:
            return ray.get(part.pid.remote(), timeout=60)
        except RayActorError:
            continue


def test_a_part_that_dies_is_followed_by_the_process_that_stood_by_and_that_by_another_one():
    (part,) = parts(1, "alone")
    first = ray.get(part.pid.remote())
    for _ in range(2):
        ray.get(part.keep.remote())
        (waits,) = until(lambda: standing_by("alone"), "one stands by", 60)
        ray.get(part.keep.remote())
        os.kill(ray.get(part.pid.remote()), signal.SIGKILL)
        assert back(part) == waits != first, "it has imported all that a part needs"
        assert not standing_by("alone")


def test_of_two_parts_the_younger_looks_and_what_a_run_has_added_takes_the_standby_too():
    couple = parts(2, "couple")
    pids = ray.get([part.pid.remote() for part in couple])
    for part in couple:
        ray.get(part.keep.remote())
    (waits,) = until(lambda: standing_by("couple"), "one stands by", 60)
    (other,) = parts(1, "other")
    assert ray.get(other.pid.remote()) != waits, "a process is of its own run"
    (third,) = parts(1, "couple")
    assert ray.get(third.pid.remote()) == waits and waits not in pids
    assert not standing_by("couple"), "the elder has started none"
