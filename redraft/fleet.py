"""The fleet: actors as Ray's FaultTolerantActorManager keeps them, one `exchange` in flight with each.

An actor that dies is restarted by Ray; one that is silent too long, or says that it has failed, is killed so that
Ray restarts it. Either way the controller learns which actor it was and why, and takes its leases back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from actors.actor import Orders, Report

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
        count: int,
        start_s: float,
        silence_s: float,
        on_lost: Callable[[int, str], None],
    ):
        self._start_s, self._silence_s, self._on_lost = start_s, silence_s, on_lost
        handles = [make(f"actor-{n}") for n in range(count)]
        # Two calls at most: an exchange and an evaluation, told apart by their tags.
        self._manager = FaultTolerantActorManager(handles, max_remote_requests_in_flight_per_actor=1)
        now = time.monotonic()
        self.members = {n: Member(f"actor-{n}", handle, now) for n, handle in enumerate(handles)}
        self._probed = now

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
        """Reports that have come in. Losses are handled on the way."""
        reports = []
        for result in self._manager.fetch_ready_async_reqs(tags=EXCHANGES):
            member = self.members[result.actor_id]
            if result.ok:
                member.heard, member.report = time.monotonic(), result.get()
                reports.append((result.actor_id, member.report))
                if member.report.state == "failed":
                    self.replace(result.actor_id, member.report.error)
            else:
                self._gone(result.actor_id, "its process died")
        self._watch()
        return reports

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
                self.replace(result.actor_id, f"an evaluation failed: {_cause(result.get())}")
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
        self._manager.set_actor_state(number, healthy=False)
        member.report, member.heard = Report("starting"), time.monotonic()
        self._on_lost(number, why)

    def _watch(self) -> None:
        """Replaces who has been silent too long; brings back who was restarted."""
        now = time.monotonic()
        for number, member in self.members.items():
            limit = self._silence_s if member.report.pid else self._start_s
            if now - member.heard > limit:
                self.replace(number, f"silent for {limit:.0f} s")
        if now - self._probed > PROBE_S:
            self._probed = now
            self._manager.probe_unhealthy_actors(timeout_seconds=0.1, mark_healthy=True)

    def _under_way(self, number: int, tag: str) -> bool:
        return self._manager._remote_actor_states[number].get_num_in_flight_requests(tag) > 0


def _cause(error: Exception) -> str:
    return str(getattr(error, "cause", None) or error).strip().split("\n")[-1]
