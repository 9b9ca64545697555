"""The fleet: actors as Ray's FaultTolerantActorManager keeps them, one `exchange` in flight with each.

An actor that dies is restarted by Ray; one that is silent or starts for too long, or says that it has failed, is killed
so that Ray restarts it. Either way `on_lost` learns which actor it was and why. When starts or weight checks fail again
and again, that is an error that names the last cause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayActorError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from actors.actor import Orders, Report
from actors.config import ActorSettings
from protocols.errors import RedraftError, WeightsError

log = logging.getLogger("redraft.fleet")
PROBE_S = 2.0
EVALUATIONS = "evaluate"
EXCHANGES = "exchange"


@dataclass(slots=True)
class Member:
    """What the controller knows of one actor."""

    name: str
    handle: object
    heard: float
    began: float
    report: Report = field(default_factory=lambda: Report("starting"))
    evaluating: bool = False

    @property
    def ready(self) -> bool:
        return self.report.state == "ready" and self.report.version is not None


class Fleet:
    """`make(name)` creates an actor handle (restarting for ever); `on_lost(actor id, why)` is told of every loss."""

    def __init__(
        self,
        make: Callable[[str], object],
        settings: ActorSettings,
        start_s: float,
        on_lost: Callable[[int, str], None],
    ):
        self._settings, self._start_s, self._on_lost = settings, start_s, on_lost
        handles = [make(f"actor-{n}") for n in range(settings.count)]
        # Two calls at most: an exchange and an evaluation, told apart by their tags.
        self._manager = FaultTolerantActorManager(handles, max_remote_requests_in_flight_per_actor=1)
        now = time.monotonic()
        self.members = {n: Member(f"actor-{n}", handle, now, now) for n, handle in enumerate(handles)}
        self._probed = now
        self._failed_starts = self._refused = 0

    def ready(self) -> list[int]:
        return [number for number, member in self.members.items() if member.ready]

    def send(self, number: int, orders: Orders) -> bool:
        """Sends orders unless the actor's last exchange is still under way, or it is gone."""
        return bool(
            self._manager.foreach_actor_async(
                "exchange", EXCHANGES, kwargs=[dict(orders=orders)], remote_actor_ids=[number]
            )
        )

    def idle(self) -> list[int]:
        """Actors that can be sent orders."""
        return [
            number
            for number in self.members
            if self._manager.is_actor_healthy(number) and not self._under_way(number, EXCHANGES)
        ]

    def receive(self) -> list[tuple[int, Report]]:
        """Reports that have come in; losses are handled on the way.

        Raises WeightsError or RedraftError when actors fail their weight checks, or to start, `actors.failures` times.
        """
        reports = []
        for result in self._manager.fetch_ready_async_reqs(tags=EXCHANGES):
            if result.ok:
                reports.append((result.actor_id, result.get()))
                self._heard(result.actor_id, result.get())
            else:
                self._broken(result.actor_id, result.get())
        self._watch()
        return reports

    def _heard(self, number: int, report: Report) -> None:
        member = self.members[number]
        member.heard, member.report = time.monotonic(), report
        if report.fatal:
            raise RedraftError(f"{member.name}: {report.error}")
        self._refused += report.weights_refused
        if report.state == "failed":
            self.replace(number, report.error)
        elif member.ready:
            self._failed_starts = 0
        if self._refused >= self._settings.failures:
            raise WeightsError(f"actors refused the learner's weights {self._refused} times; the last: {report.error}")

    def _broken(self, number: int, error: Exception) -> None:
        """A call failed: the process died, or the call itself did, and then the process is not to be trusted."""
        if isinstance(error, RayActorError):
            self._gone(number, "its process died")
        else:
            self.replace(number, _cause(error))

    def evaluate(self, number: int, tasks: list[dict], rollout, sampling) -> None:
        """Has an actor play tasks outside of training; `evaluated` tells the end."""
        self.members[number].evaluating = True
        self._manager.foreach_actor_async(
            "evaluate",
            EVALUATIONS,
            kwargs=[dict(tasks=tasks, settings=rollout, sampling=sampling)],
            remote_actor_ids=[number],
        )

    def evaluated(self) -> list[tuple[int, list | None]]:
        """(actor id, turns of each task) for every evaluation that ended; None for the turns when it was lost."""
        ended = []
        for result in self._manager.fetch_ready_async_reqs(tags=EVALUATIONS):
            if self.members[result.actor_id].evaluating:
                ended.append((result.actor_id, result.get() if result.ok else None))
            if not result.ok:
                self._broken(result.actor_id, result.get())
        ended += [(number, None) for number, member in self.members.items() if member.evaluating and not member.ready]
        ended = list(dict(reversed(ended)).items())
        for number, _ in ended:
            self.members[number].evaluating = False
        return ended

    def replace(self, number: int, why: str) -> None:
        """Kills an actor's process, which Ray then restarts."""
        member = self.members[number]
        self._gone(number, why)
        ray.kill(member.handle, no_restart=False)

    def close(self, limit_s: float) -> None:
        """Ends all actors: kindly at first."""
        handles = [member.handle for member in self.members.values()]
        ray.wait([handle.close.remote() for handle in handles], num_returns=len(handles), timeout=limit_s)
        self._manager.clear()

    def _gone(self, number: int, why: str) -> None:
        member = self.members[number]
        starting = not member.ready and not member.report.weights_refused
        self._manager.set_actor_state(number, healthy=False)
        member.report, member.heard, member.began = Report("starting"), time.monotonic(), time.monotonic()
        self._on_lost(number, why)
        self._failed_starts += starting
        if self._failed_starts >= self._settings.failures:
            raise RedraftError(f"actors could not start {self._failed_starts} times in a row; the last: {why}")

    def _watch(self) -> None:
        """Replaces who is silent, or starts, for too long; brings back who was restarted."""
        now = time.monotonic()
        for number, member in self.members.items():
            if member.report.pid and now - member.heard > self._settings.silence_s:
                self.replace(number, f"silent for actors.silence_s={self._settings.silence_s:g}")
            elif not member.ready and now - member.began > self._start_s:
                self.replace(number, f"not ready within start_s={self._start_s:g}")
        if now - self._probed > PROBE_S:
            self._probed = now
            self._manager.probe_unhealthy_actors(timeout_seconds=0.1, mark_healthy=True)

    def _under_way(self, number: int, tag: str) -> bool:
        return self._manager._remote_actor_states[number].get_num_in_flight_requests(tag) > 0


def _cause(error: Exception) -> str:
    return str(getattr(error, "cause", None) or error).strip().split("\n")[-1]
