"""A process that stands by becomes the part that Ray needs next; it holds for the release of Ray that is pinned."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from support.places import PYTHONPATH
from support.ray_nodes import RayNodes, kill
from support.waiting import deadline_s, until

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


@pytest.fixture(scope="module")
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


def standing_by(run: str, root: int | None = None) -> set[int]:
    """Pids below that process, or this one."""
    found = set()
    for child in psutil.Process(root).children(recursive=True):
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


DRIVER = """
import sys
import ray
import test_standby
from support.waiting import until
ray.init(address=sys.argv[1], log_to_driver=False)
(part,) = test_standby.parts(1, "driver")
ray.get(part.keep.remote())
print(*until(lambda: test_standby.standing_by("driver", int(sys.argv[2])), "one stands by", 60), flush=True)
"""


def test_on_a_cluster_that_goes_on_it_ends_with_its_run():
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        nodes = RayNodes(Path(folder))
        path = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))
        driver = subprocess.run(
            [sys.executable, "-c", DRIVER, nodes.address, str(nodes.head.pid)],
            env=nodes.environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=deadline_s(120),
        )
        assert driver.returncode == 0, driver.stderr[-2000:]
        stood_by = int(driver.stdout.split()[-1])
        until(lambda: not psutil.pid_exists(stood_by), "nobody keeps it", 60)
        kill(nodes.head)


def test_a_part_that_dies_is_followed_by_the_process_that_stood_by_and_that_by_another_one(cluster):
    (part,) = parts(1, "alone")
    first = ray.get(part.pid.remote())
    for _ in range(2):
        ray.get(part.keep.remote())
        (waits,) = until(lambda: standing_by("alone"), "one stands by", 60)
        ray.get(part.keep.remote())
        os.kill(ray.get(part.pid.remote()), signal.SIGKILL)
        assert back(part) == waits != first, "it has imported all that a part needs"
        until(lambda: not standing_by("alone"), "the only one was taken", 60)


def test_of_two_parts_the_younger_looks_and_what_a_run_has_added_takes_the_standby_too(cluster):
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
