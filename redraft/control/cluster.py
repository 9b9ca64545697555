"""The Ray cluster of a run: one that is joined, or one that is started here for as long as the run goes on.

Import it before ray: Ray reads the variables that are set below when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from protocols.errors import FAULT
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


SHUTDOWN_S = 60.0  # Ray itself waits so long for a head that is gone


@contextlib.contextmanager
def ray_for(recipe: Recipe) -> Iterator[str]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here and ends it afterwards; yields the cluster's address."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = dict(num_cpus=local_cpus(recipe, os.cpu_count() or 1), include_dashboard=False)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    context: Any = ray.init(
        address=address or "local",  # by itself Ray would join one that somebody else has started here
        namespace="redraft",
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if address else local),
    )
    try:
        yield context.address_info["gcs_address"]
    finally:
        _bounded(ray.shutdown, SHUTDOWN_S)


def _bounded(end: Callable[[], object], limit_s: float) -> None:
    """Ends this process with 75 where `end` hangs, as Ray's may when its cluster has died."""
    timer = threading.Timer(limit_s, os._exit, (FAULT,))
    timer.daemon = True
    timer.start()
    end()
    timer.cancel()
