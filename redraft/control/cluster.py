"""The Ray cluster of a run: one that is joined, or one that is started here for as long as the run goes on.

Import it before ray: Ray reads the variables that are set below when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protocols import process_folder
from protocols.errors import FAULT, FaultError, RedraftError, SettingError, in_a_line
from redraft import processes
from redraft.recipe import Recipe

# Ray reads these when it is imported. Processes that disagree about the first cannot talk: a local cluster asks for the
# token that Ray keeps in the user's home, which also keeps other users of the machine out. By default Ray also
# keeps every call for its dashboard, which is off: 39 MB for 10,000 calls, and each actor is called 20 times a second.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
ROOM = 4  # times as many actors as a recipe begins with may be asked for by `redraft scale` where Ray is started here


def local_cpus(recipe: Recipe, cores: int) -> int:
    """CPUs of a Ray that is started for a run: what its recipe asks for and room to grow, at least the machine's cores.
    Ray only counts them, and more may be asked of cores than they can do."""
    actors, learner = recipe.actors, recipe.learner
    most = actors.autoscale.max if actors.autoscale else ROOM * actors.count
    return max(cores, math.ceil(most * actors.cpus + learner.ranks * learner.cpus))


log = logging.getLogger("redraft.cluster")
END_S = 10.0  # for processes to go whose Ray has ended
SHUTDOWN_S = 60.0  # Ray itself waits so long for a head that is gone
REACH_S = 10.0  # within which the head of a cluster takes a connection
JOIN_S = 120.0  # within which it lets a driver in, or a Ray that is started here is up, also under load
STARTS = 2  # of Ray here: it gives up by itself where the machine is busy
SOCKET_BYTES = 107  # of the name of a socket, on Linux
SOCKETS = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # of Ray, in its folder
SHARED_BYTES = 2**28  # of /dev/shm, below which Ray keeps objects elsewhere or soon runs out of room
CLUSTER = "Name the head of a Ray cluster that is up, HOST:6379, or unset RAY_ADDRESS to have Ray started here"


def joined() -> str:
    """The RAY_ADDRESS of a cluster that is to be joined; "" where Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


def check(resume: bool = False) -> None:
    """Raises SettingError where Ray can neither be joined nor started, before anything else is done. Of a run that is
    resumed a cluster that does not answer is a fault: it was there before, and may come again."""
    address = joined()
    if not address:
        _check_folders()
    elif "://" in address:
        problem = f"{address} speaks Ray's client protocol, by which no run can be started"
        raise SettingError("RAY_ADDRESS", problem, "Name the head itself, HOST:6379, or submit the command as a job")
    elif address != "auto":
        _check_head(address, resume)


def _check_head(address: str, resume: bool) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise SettingError("RAY_ADDRESS", f"{address!r} is not HOST:PORT", CLUSTER)
    deadline = time.monotonic() + REACH_S
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() + 1 >= deadline:
                raise _no_cluster(f"{address} took no connection within {REACH_S:g} s ({error})", resume) from None
        time.sleep(1)


def _no_cluster(problem: str, resume: bool) -> RedraftError:
    return FaultError(f"RAY_ADDRESS: {problem}") if resume else SettingError("RAY_ADDRESS", problem, CLUSTER)


def _check_folders() -> None:
    """Of a Ray that is started here."""
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(variable, "/tmp")
    most = SOCKET_BYTES - len(SOCKETS)
    if len(os.fsencode(folder)) > most:
        problem = f"{folder} has {len(os.fsencode(folder))} bytes, and Ray's sockets have room for a folder of {most}"
        raise SettingError(variable, problem, "Set RAY_TMPDIR to a shorter one, such as /tmp")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < SHARED_BYTES:
        told = "/dev/shm has %.0f MB: Ray keeps objects on the disk instead, slowly. In Docker give --shm-size=2g"
        log.warning(told, shutil.disk_usage(shared).total / 1e6)


@contextlib.contextmanager
def ray_for(recipe: Recipe, resume: bool = False) -> Iterator[str]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here and ends it afterwards; yields the cluster's address. Raises
    as `check` does, and FaultError where Ray does not start."""
    import ray

    check(resume)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address, others = joined(), processes.children(os.getpid())
    context: Any = _join(address, resume) if address else _start(recipe)
    started = processes.children(os.getpid()) - others
    try:
        yield context.address_info["gcs_address"]
    finally:
        parts = processes.below(started or _bounded(_actors_here, SHUTDOWN_S))
        _bounded(ray.shutdown, SHUTDOWN_S, ends=lambda: processes.end(parts, 0.0))
        processes.end(parts, END_S)
        process_folder.sweep()


def _actors_here() -> set[int]:
    """The processes of this command's actors on this node, where Ray was there before. A node may be a container with
    numbers of its own, so only what Ray has named is one of them."""
    import ray
    from ray._private import state

    try:
        here = ray.get_runtime_context()
        job, node = ray.JobID.from_hex(here.get_job_id()), here.get_node_id()
        alive = state.actors(job_id=job, actor_state_name="ALIVE").values()
        pids = {actor["Pid"] for actor in alive if actor["Address"]["NodeID"] == node}
        return {pid for pid in pids if processes.title(pid).startswith("ray::")}
    except Exception as error:  # the cluster has gone, and its workers with it
        log.debug("the actors of this command cannot be asked for: %s", in_a_line(error))
        return set()


def _join(address: str, resume: bool) -> Any:
    from ray.exceptions import AuthenticationError

    try:
        return _init(f"RAY_ADDRESS: {address} let no driver in", address=address)
    except AuthenticationError as error:
        cure = "Give this process the cluster's token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH)"
        raise SettingError("RAY_ADDRESS", f"{address} refused the token: {in_a_line(error)}", cure) from None
    except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: another version of Ray or Python
        raise _no_cluster(in_a_line(error), resume) from None


def _start(recipe: Recipe) -> Any:
    """By itself Ray would join one that somebody else has started here."""
    import ray

    local = dict(num_cpus=local_cpus(recipe, os.cpu_count() or 1), include_dashboard=False)
    for left in reversed(range(STARTS)):
        try:
            return _init("Ray did not start here", address="local", **local)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, RuntimeError | OSError):
                raise  # of a slow machine Ray says no more than that it is an Exception
            if not left:
                raise FaultError(f"Ray did not start here in {STARTS} tries: {in_a_line(error)}") from error
            log.warning("Ray did not start here, and is started again: %s", in_a_line(error))
            _bounded(ray.shutdown, SHUTDOWN_S)
    raise AssertionError("unreachable")


def _init(what: str, **arguments: Any) -> Any:
    import ray
    from ray.job_config import JobConfig

    job = JobConfig()
    job._py_driver_sys_path = _OwnPath()

    def joins() -> Any:
        level = logging.ERROR
        return ray.init(namespace="redraft", log_to_driver=False, logging_level=level, job_config=job, **arguments)

    return _bounded(joins, JOIN_S, f"redraft: {what} within {JOIN_S:g} s")


class _OwnPath(list):
    """Ray would put the working directory first on the path of each worker, where a user's replay.py hides ours."""

    def extend(self, paths: object) -> None:
        pass


def _bounded(call: Callable[[], Any], limit_s: float, told: str = "", ends: Callable[[], Any] = lambda: None) -> Any:
    """What the call returns. Ends this process with 75 where it hangs, as Ray's may when its cluster has died, after
    what `ends` does then."""

    def end() -> None:
        ends()
        if told:
            print(told, file=sys.stderr, flush=True)
        os._exit(FAULT)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        return call()
    finally:
        timer.cancel()
