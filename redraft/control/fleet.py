"""The fleet: actors as Ray's FaultTolerantActorManager keeps them, one `exchange` in flight with each, or a second one
that ends the wait of the first.

An actor that dies is restarted by Ray, one that cannot be constructed is made anew; one that is silent or starts for
too long, or says that it has failed, is killed so that Ray restarts it. Either way `on_lost` learns which actor it was
and why. When starts or weight checks fail again and again, that is an error that names the last cause. An actor for
which the cluster has no room does not start yet: it waits, for as long as it takes, and the others play.

    made --Ray has room--> starting --weights verified--> ready --resize--> draining --nothing left--> closed, removed

The number of an actor is its own: one that comes later gets a higher one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray._private import state as ray_state
from ray.exceptions import RayActorError

from actors.config import ActorSettings
from actors.contract import Orders, Report
from protocols import metrics
from protocols.errors import FaultError, RedraftError, WeightsError
from redraft.control import faults
from redraft.control.actor_manager import manager_class
from redraft.evaluation.measures import Pass

log = logging.getLogger("redraft.fleet")
PROBE_S = 2.0
CLOSE_S = 15.0  # for an actor that is removed to free its engine; then it is killed
EVALUATIONS = "evaluate"
EXCHANGES = "exchange"
WAITING = "waiting for resources"


@dataclass(slots=True)
class Member:
    """What the controller knows of one actor."""

    name: str
    handle: Any
    """Ray's."""
    heard: float
    began: float
    report: Report = field(default_factory=lambda: Report("starting"))
    evaluating: bool = False
    waiting: bool = False
    """The cluster has no room for its process yet."""
    told: int | None = None
    """The version of the weights of which it was told last."""
    waits: bool = False
    """The report to its last orders waits for something to say, so that it can be sent others."""
    draining: float | None = None
    """It is to go, and may finish what it plays until then."""

    @property
    def ready(self) -> bool:
        return self.report.state == "ready" and self.report.version is not None

    @property
    def lacks(self) -> str:
        """What it still waits for until it is ready; "" when it is."""
        if self.ready:
            return ""
        if self.waiting:
            return "resources"
        if not self.report.pid:
            return "process"
        if self.report.state == "ready":
            return "weights"
        return f"engine ({self.report.phase})" if self.report.phase else "engine"

    @property
    def late(self) -> bool:
        """What it still plays is given to others."""
        return self.draining is not None and time.monotonic() > self.draining

    @property
    def state(self) -> str:
        """For people: that of its report, "draining", or "waiting for resources"."""
        if self.draining is not None:
            return "draining"
        return WAITING if self.waiting else self.report.state


class Fleet:
    """`make(name)` creates an actor handle (restarting for ever); `on_lost(actor id, why)` is told of every loss."""

    def __init__(
        self,
        make: Callable[[str], Any],
        settings: ActorSettings,
        start_s: float,
        on_lost: Callable[[int, str], None],
    ):
        self._make, self._settings, self._start_s, self._on_lost = make, settings, start_s, on_lost
        self.members: dict[int, Member] = {}
        self.target = 0
        self._made = 0
        self._closing: list[tuple[Any, Any, float]] = []  # actor, its `close` under way, when it is killed
        self._probed = time.monotonic()
        self._failed_starts = self._refused = 0
        self._lost: list[int] = []  # who evaluated when their process went, of which nobody has been told
        self.resize(settings.count)

    def ready(self) -> list[int]:
        """Actors that may be given work."""
        return [number for number, member in self.members.items() if member.ready and member.draining is None]

    def nodes(self) -> set[str]:
        """Ray's ids of the nodes on which there are actors, or processes that become actors."""
        places = (member.report.node_id or _place(member.handle).get("NodeID") for member in self.members.values())
        return {node for node in places if node}

    def begun(self, number: int) -> bool:
        """Whether an actor may have an engine, or be starting one: it has been sent orders."""
        return bool(self.members[number].report.pid) or self._under_way(number, EXCHANGES) > 0

    def hold(self, number: int) -> None:
        """It may not begin yet, for no fault of its own."""
        member = self.members[number]
        member.began = member.heard = time.monotonic()

    @property
    def placed(self) -> int:
        """Actors for which Ray has found room; asked in any thread."""
        return sum(bool(member.report.pid or _place(member.handle)) for member in list(self.members.values()))

    def begin(self) -> None:
        """The time to start counts from now: before, nobody listened, or there were no weights to start with."""
        for member in self.members.values():
            member.began = member.heard = time.monotonic()

    @property
    def settled(self) -> bool:
        """There are as many actors as there should be, and all are ready."""
        return len(self.ready()) == len(self.members) == self.target

    def resize(self, count: int) -> None:
        """There should be `count` actors: more are made, or those drained that are missed least.

        First those that start, then the least busy, then the newest. Who drains stays when more are wanted again.
        """
        self.target = count
        stay = [number for number, member in self.members.items() if member.draining is None]
        back = [number for number in self.members if number not in stay][: max(0, count - len(stay))]
        for number in back:
            self.members[number].draining = None
        self._add(max(0, count - len(stay) - len(back)))
        for number in sorted(stay, key=self._missed)[: max(0, len(stay) - count)]:
            self.members[number].draining = time.monotonic() + self._settings.drain_s

    def leaving(self) -> list[int]:
        """Actors that drain: who has nothing left to play is to be removed."""
        return [number for number, member in self.members.items() if member.draining is not None]

    def remove(self, number: int) -> None:
        """Takes an actor out of the fleet and ends it: kindly, in the background, where it has begun."""
        member = self.members.pop(number)
        self._manager.remove_actor(number)
        if member.report.pid:
            self._closing.append((member.handle, member.handle.close.remote(), time.monotonic() + CLOSE_S))
        else:
            ray.kill(member.handle)
        log.info("%s is removed", member.name)

    def _add(self, count: int) -> None:
        numbers, now = range(self._made, self._made + count), time.monotonic()
        self._made += count
        for number in numbers:
            name = f"actor-{number}"
            self.members[number] = Member(name, self._make(name), now, now)
        for number in numbers:
            self._manager.add_actors([self.members[number].handle])  # it counts in the same way

    @cached_property
    def _manager(self):
        """Made when the first actors are, while their processes start."""
        # Of each kind, by its tag: two exchanges, one evaluation.
        return manager_class()(max_remote_requests_in_flight_per_actor=2)

    def _missed(self, number: int) -> tuple:
        """Sorts actors by what is lost when they go."""
        member = self.members[number]
        return member.ready, member.evaluating, member.report.playing, -number

    def send(self, number: int, orders: Orders) -> bool:
        """Sends orders unless two exchanges with the actor are still under way, or it is gone."""
        sent = self._manager.foreach_actor_async(
            exchange, EXCHANGES, kwargs=dict(orders=orders), remote_actor_ids=[number]
        )
        if sent:
            member = self.members[number]
            member.waits = orders.wait_s > 0
            member.told = member.told if orders.weights is None else orders.weights.version
        return bool(sent)

    def hear(self) -> None:
        """Learns how far actors are, and which have failed to start, while there is nothing yet that they could do."""
        self.begin()
        self.receive()
        for number in self.idle():
            self.send(number, Orders())

    def lacking(self, weights: bool = True) -> list[str]:
        """Who is not ready, and what each lacks: "actor-0: engine". Without `weights`, those that lack only weights are
        left out: they wait for the learner."""
        lacks = [(member.name, member.lacks) for member in self.members.values()]
        return [f"{name}: {what}" for name, what in lacks if what and (weights or what != "weights")]

    def idle(self) -> list[int]:
        """Actors that can be sent orders."""
        return [
            number
            for number in self.members
            if self._manager.is_actor_healthy(number) and not self._under_way(number, EXCHANGES)
        ]

    def waiting(self) -> list[int]:
        """Actors whose report waits for something to say: orders that are sent to them now end that wait."""
        return [
            number
            for number, member in self.members.items()
            if member.waits and self._manager.is_actor_healthy(number) and self._under_way(number, EXCHANGES) == 1
        ]

    def receive(self) -> list[tuple[int, Report]]:
        """Reports that have come in; losses are handled on the way.

        Raises WeightsError or RedraftError when actors fail their weight checks, or to start, `actors.failures` times.
        """
        reports, broken = [], set()
        for number, ok, answer in self._answers(EXCHANGES):
            if number in broken:  # the second exchange with it says the same
                continue
            if not ok or answer.state == "failed":
                broken.add(number)
            if ok:
                reports.append((number, answer))
                self._heard(number, answer)
            else:
                self._broken(number, answer)
        self._watch()
        return reports

    def _answers(self, tag: str) -> Iterator[tuple[int, bool, Any]]:
        """Of the calls with this tag that have ended: the actor, whether it went well, the result or the error."""
        calls: Any = self._manager.fetch_ready_async_reqs(tags=tag)  # Ray's annotation names another class
        for call in calls:
            yield call.actor_id, call.ok, call.get()

    def _heard(self, number: int, report: Report) -> None:
        member = self.members[number]
        member.heard, member.report = time.monotonic(), report
        if report.fatal:
            raise RedraftError(f"{member.name}: {report.error}")
        self._refused += report.weights_refused
        metrics.WEIGHTS_REFUSED.inc(int(report.weights_refused))
        if report.state == "failed":
            self.replace(number, report.error)
        elif member.ready:
            self._failed_starts = 0
        if self._refused >= self._settings.failures:
            raise WeightsError(f"actors refused the learner's weights {self._refused} times; the last: {report.error}")

    def _broken(self, number: int, error: Exception) -> None:
        """A call failed: the process died, or the call itself did, and then the process is not to be trusted."""
        if not isinstance(error, RayActorError):
            self.replace(number, faults.of_a_call(error))
        elif error.actor_init_failed:
            self._make_anew(number, faults.of_a_call(error))
        else:
            self._gone(number, "its process died", FaultError)

    def _make_anew(self, number: int, why: str) -> None:
        """Puts another one in the place of an actor that could not be constructed: Ray starts such a one no more."""
        self._gone(number, why, FaultError)
        member = self.members.pop(number)
        self._manager.remove_actor(number)
        log.warning("%s could not begin: %s", member.name, why)
        self._add(int(member.draining is None))

    def evaluate(self, number: int, tasks: Sequence[dict], one: Pass, share: int) -> None:
        """Has an actor play tasks outside of training; `evaluated` tells the end, and its reports how far `share`, a
        number of the caller's, has come."""
        self.members[number].evaluating = True
        self._manager.foreach_actor_async(
            "evaluate",
            EVALUATIONS,
            kwargs=[dict(tasks=tasks, settings=one.rollout, sampling=one.sampling, share=share, feedback=one.feedback)],
            remote_actor_ids=[number],
        )

    def evaluated(self) -> list[tuple[int, list | None]]:
        """(actor id, turns of each task) for every evaluation that ended; None for the turns when it was lost."""
        ended = []
        for number, ok, answer in self._answers(EVALUATIONS):
            if self.members[number].evaluating:
                ended.append((number, answer if ok else None))
                self.members[number].evaluating = not ok
            if not ok:
                self._broken(number, answer)
        late = [n for n, member in self.members.items() if member.evaluating and (not member.ready or member.late)]
        ended += [(number, None) for number in (*self._lost, *late)]
        ended = list(dict(reversed(ended)).items())
        self._lost.clear()
        for number in late:
            self.members[number].evaluating = False
        return ended

    def replace(self, number: int, why: str) -> None:
        """Kills an actor's process, which Ray then restarts."""
        member = self.members[number]
        self._gone(number, why)
        ray.kill(member.handle, no_restart=False)

    def close(self, limit_s: float) -> None:
        """Ends all actors: kindly at first."""
        closes = [member.handle.close.remote() for member in self.members.values()]
        closes += [close for _, close, _ in self._closing]
        ray.wait(closes, num_returns=len(closes), timeout=limit_s)
        self._manager.clear()
        for handle, _, _ in self._closing:
            ray.kill(handle)

    def _gone(self, number: int, why: str, kind: type[RedraftError] = RedraftError) -> None:
        """Raises an error of this kind when that was once too often."""
        member = self.members[number]
        starting = not member.ready and not member.report.weights_refused
        self._manager.set_actor_state(number, healthy=False)
        member.report, member.heard, member.began = Report("starting"), time.monotonic(), time.monotonic()
        member.told, member.waits = None, False
        if member.evaluating:  # and may be back before anybody asks for what was evaluated
            member.evaluating = False
            self._lost.append(number)
        self._on_lost(number, why)
        self._failed_starts += starting
        if self._failed_starts >= self._settings.failures:
            raise kind(f"actors could not start {self._failed_starts} times in a row; the last: {why}")

    def _watch(self) -> None:
        """Replaces who is silent, or starts, for too long; brings back who was restarted; ends who was removed."""
        now = time.monotonic()
        if now - self._probed > PROBE_S:
            self._probed = now
            self._manager.probe_unhealthy_actors(timeout_seconds=0.1, mark_healthy=True)
            self._look_for_room(now)
        for number, member in self.members.items():
            if member.report.pid and now - member.heard > self._settings.silence_s:
                self.replace(number, f"silent for actors.silence_s={self._settings.silence_s:g}")
            elif not member.ready and now - member.began > self._start_s:
                self.replace(number, f"not ready within start_s={self._start_s:g}")
        for handle, close, until in list(self._closing):
            if now > until or ray.wait([close], timeout=0)[0]:
                self._closing.remove((handle, close, until))
                ray.kill(handle)

    def _look_for_room(self, now: float) -> None:
        """Finds out who has no process, for want of resources: the time to start counts from when there is one."""
        for member in self.members.values():
            member.waiting = not member.report.pid and not _place(member.handle)
            if member.waiting:
                member.began = now

    def _under_way(self, number: int, tag: str) -> int:
        return self._manager._remote_actor_states[number].get_num_in_flight_requests(tag)


def exchange(actor: Any, **orders: Orders) -> Any:
    """What each actor is asked. By its name the manager would pickle a function of its own with every call."""
    return actor.exchange(**orders)


def _place(handle: Any) -> dict[str, Any]:
    """Where Ray has found room for an actor; empty where it has not. Its public API tells only with a dashboard."""
    where = ray_state.actors(handle._actor_id.hex()).get("Address", {})
    return where if where.get("Port") else {}
