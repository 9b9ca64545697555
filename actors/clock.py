"""What an actor spends its time on, in seconds by state: how one sees why it is idle.

start        the engine is built
weights      a version is loaded and checked
generating   the engine has requests
no_lease     no group is in play: the controller gave none (see redraft_controller_admission_seconds_total)
replay       every group in play waits for replay: for room before it begins, or for its acknowledgement
environment  groups are in play, and none is in the engine: environments, or a teacher, have them
"""

from __future__ import annotations

import time

from protocols import metrics


class StateClock:
    """Counts the time between two looks for the state that the second one saw.

    An actor looks at each exchange, 20 times a second, and around what is shorter and always seen: a load.
    """

    def __init__(self):
        self._seen = time.monotonic()

    def see(self, state: str) -> None:
        now = time.monotonic()
        metrics.ACTOR_SECONDS.labels(state=state).inc(now - self._seen)
        self._seen = now


def state_of(ready: bool, loading: bool, running: int, playing: int, at_replay: int) -> str:
    """The state of an actor with that many requests in its engine and groups in play, of which some wait for replay."""
    if not ready:
        return "start"
    if loading:
        return "weights"
    if running:
        return "generating"
    if not playing:
        return "no_lease"
    return "replay" if at_replay >= playing else "environment"
