"""Asks the controller of a run that goes on, from any process: its status, to stop, to scale, to add a shard."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from protocols.errors import DeadlineError, RedraftError, SettingError, in_a_line
from protocols.reports import RunEnded, RunStatus
from redraft import recipe as recipes
from redraft import records
from redraft import run as runs
from redraft.control import cluster  # noqa: F401  sets what Ray reads when it is imported
from redraft.control.places import Scaled
from redraft.owner import holder
from redraft.run import Run

ANSWER_S = 10.0
"""Longest wait for an answer of a controller."""
LOOK_S = 0.5  # between two looks at whether a run has ended


def actor_name(run: Run) -> str:
    return f"controller-{run.id}"


def status(name: str) -> RunStatus | RunEnded:
    """The controller's status, or how the run has ended. Raises RedraftError where it goes on and cannot be asked."""
    import ray
    from ray.exceptions import RayError

    run = runs.find(name)
    try:
        return ray.get(_controller(run).status.remote(), timeout=ANSWER_S)
    except (RedraftError, RayError):
        return _ended(run)


def _ended(run: Run) -> RunEnded:
    """How a run has ended, by its folder: also one whose controller could not say it any more."""
    if (who := holder(run.folder)) is not None:
        raise RedraftError(f"{run.name} cannot be asked: its controller is not up, or not to be reached here; {who}")
    if (ended := records.ended(run.folder)) is not None:
        return ended
    steps = records.step_lines(run.folder)
    step, seconds = (steps[-1].report.step, steps[-1].time_s) if steps else (0, 0.0)
    error = "its controller ended without a word: it was killed, or its machine was lost"
    newest = runs.newest_step(run.folder)
    return RunEnded(run.name, "crashed", error, try_again=True, checkpoint=newest, steps=step, seconds=seconds)


def stop(name: str, evict: bool = False, wait_s: float = 0.0) -> None:
    """Has a run write a checkpoint and end; with `evict` so that its command exits with 75. Returns when no command
    has it any more. Raises DeadlineError where it has after `wait_s` seconds, unless they are 0."""
    import ray

    run = runs.find(name)
    ray.get(_controller(run).stop.remote(evict), timeout=ANSWER_S)
    deadline = time.monotonic() + wait_s
    while wait_s and holder(run.folder) is not None:
        if time.monotonic() > deadline:
            raise DeadlineError("redraft stop", name, wait_s, "it has not ended")
        time.sleep(LOOK_S)


def grow(name: str) -> int:
    """Gives a run that goes on one more replay service; returns how many there are."""
    run = runs.find(name)
    limit_s = 2 * recipes.load(run.folder / "recipe.yaml").start_s + ANSWER_S
    return _ask(run, "redraft replay grow", limit_s, lambda controller: controller.add_shard.remote())


def scale(name: str, count: int) -> Scaled:
    """Sets how many actors a run that goes on shall have; returns how many it should have before, and what to know."""
    if count < 1:
        raise SettingError("N", f"must be at least 1, got {count}", "`redraft stop` ends a run")
    return _ask(runs.find(name), "redraft scale", ANSWER_S, lambda controller: controller.scale.remote(count))


def _ask(run: Run, command: str, limit_s: float, call: Callable[[Any], Any]) -> Any:
    """What the controller of a run answers to a call. Raises the error that it answers with."""
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError

    reference: Any = call(_controller(run))
    try:
        return ray.get(reference, timeout=limit_s)
    except GetTimeoutError:
        raise DeadlineError(command, f"the controller of {run.name}", limit_s) from None
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RedraftError) else RedraftError(in_a_line(error.cause))) from None


def _controller(run: Run) -> Any:
    """The handle of a run that goes on now. Raises RedraftError when it does not."""
    import ray
    from ray.exceptions import AuthenticationError

    gone = RedraftError(f"{run.name} is not running")
    host, _, port = run.ray.rpartition(":")
    try:
        if not ray.is_initialized():  # Ray itself would wait for minutes for a cluster that has ended
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            ray.init(address=run.ray, namespace="redraft", log_to_driver=False, logging_level=logging.CRITICAL)
        return ray.get_actor(actor_name(run))
    except AuthenticationError:
        cure = "set RAY_AUTH_TOKEN_PATH to the file of its cluster's token"
        raise RedraftError(f"Ray at {run.ray} wants another token than this user's: {cure}") from None
    except (OSError, ValueError, RuntimeError):
        raise gone from None
