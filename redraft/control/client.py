"""Asks the controller of a run that goes on, from any process: its status, to stop, to scale, to add a shard."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from typing import Any

from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.reports import RunEnded, RunStatus
from redraft import recipe as recipes
from redraft import run as runs
from redraft.control import cluster  # noqa: F401  sets what Ray reads when it is imported
from redraft.control.places import Scaled
from redraft.run import Run

ANSWER_S = 10.0
"""Longest wait for an answer of a controller."""


def actor_name(run: Run) -> str:
    return f"controller-{run.id}"


def status(name: str) -> RunStatus | RunEnded:
    """The controller's status, or how the run has ended. Raises RedraftError without either."""
    import ray

    run = runs.find(name)
    summary = run.folder / "summary.json"
    try:
        return ray.get(_controller(run).status.remote(), timeout=ANSWER_S)
    except RedraftError:
        if not summary.exists():
            raise
    return RunEnded.from_json(json.loads(summary.read_text()))


def stop(name: str) -> None:
    import ray

    ray.get(_controller(runs.find(name)).stop.remote(), timeout=ANSWER_S)


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
        raise (error.cause if isinstance(error.cause, RedraftError) else RedraftError(repr(error.cause))) from None


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
