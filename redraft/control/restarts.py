"""The learner's ranks started anew while the run goes on (`learner.restarts`), when the process of one has died.

    ranks     all of them are killed, since those that live wait for the one that is gone; new ones load the newest
              checkpoint, as after --resume
    leases    all that are out are taken back, and are given again under higher fencing tokens; none is given meanwhile
    replay    serves again what was used after the checkpoint, and refuses what is half played: the new rank 0 says so,
              before it trains
    weights   those of the checkpoint are announced under a number of a new incarnation, and nothing is leased before
              all actors that are ready have them
    figures   steps after the checkpoint are done again, and told again (records.steps); late word of the ranks that
              died counts for nothing

Actors and their engines stay as they are, and so does the order of tasks: what was closed is in replay, whatever the
learner has forgotten. A group that closed before is trained as after --resume: its log-probs are those of the weights
that sampled it, and its staleness is counted in steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from protocols.errors import DeadlineError, FaultError, RedraftError
from redraft.control import faults
from redraft.control.course import Course
from redraft.control.exchange import TICK_S, Announced, Exchange
from redraft.control.status import Status
from redraft.recipe import Recipe
from redraft.run import Run, newest_step

PEERS_S = 45.0  # for Ray to notice that a node is lost, when a rank fails for want of a peer


class RankDiedError(FaultError):
    """The process of a rank was killed, or its node is lost; no exception of its own ended it."""


class StoppedError(Exception):
    """The run was told to stop while its ranks start anew."""


class Restarts:
    """Those of a run, whose controller `stopping` tells to end. `again` is called in the thread that looks after the
    fleet."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        exchange: Exchange,
        course: Course,
        status: Status,
        announced: Announced,
        stopping: threading.Event,
    ):
        self._run, self._recipe, self._exchange, self._course = run, recipe, exchange, course
        self._status, self._announced, self._stopping = status, announced, stopping
        self._in_a_row, self._kept = 0, -1

    def again(self, death: FaultError, controller: Any) -> bool:
        """Whether training goes on: new ranks are up, and all actors have the weights from which they go on. It does
        not where the run was told to stop, before the death or since: it ends with the newest checkpoint.

        Raises FaultError when that was once too often, DeadlineError when there is no room for the ranks, or an actor
        does not take the weights.
        """
        while True:
            try:
                self._look()
                self._count(death)
                self._begin_anew(controller)
                return True
            except StoppedError:
                newest = newest_step(self._run.folder)
                kept = "without a checkpoint" if newest is None else f"with the checkpoint of step {newest}"
                self._status.event(f"{death}. The run was told to stop, and ends {kept}")
                self._status.ends_at(newest or 0)
                return False
            except RayError as error:
                if not faults.is_fault(error):
                    raise
                death = FaultError(f"the learner's ranks did not come up anew: {faults.of_a_call(error)}")

    def _count(self, death: FaultError) -> None:
        """One more, told. A checkpoint between two begins the count anew."""
        most, newest = self._recipe.learner.restarts, newest_step(self._run.folder)
        kept = -1 if newest is None else newest
        self._in_a_row = 1 if kept > self._kept else self._in_a_row + 1
        self._kept = kept
        if not most:
            raise death
        if self._in_a_row > most:
            problem = f"{self._in_a_row} times in a row without a new checkpoint (learner.restarts={most})"
            raise FaultError(f"the learner lost a rank {problem}; the last: {death}")
        self._status.restarting(str(death), newest, self._in_a_row, most)

    def _look(self) -> None:
        if self._stopping.is_set():
            raise StoppedError

    def _begin_anew(self, controller: Any) -> None:
        ranks = self._exchange.parts.ranks

        def meanwhile(waiting: Sequence[str]) -> None:
            self._look()
            self._exchange.tick()
            self._status.missing(waiting)

        self._announced.forget()
        ranks.kill()
        self._exchange.recall("the learner goes back to its checkpoint")
        ranks.start(meanwhile)
        begins = ranks.set_up(True, meanwhile)
        self._status.restarted(begins.step, begins.trained, begins.last)
        self._course.back(begins.step)
        ranks.announce(controller, meanwhile)
        self._overwrite(meanwhile)

    def _overwrite(self, meanwhile) -> None:
        """Returns when no actor that is ready has other weights than those from which the learner goes on."""
        limit_s = self._recipe.start_s
        until = time.monotonic() + limit_s
        while self._announced.newest is None or not self._exchange.arrived():
            meanwhile(["actors, to take the weights of the checkpoint"])
            if time.monotonic() > until:
                raise DeadlineError("the controller", "actors", limit_s, "they did not take the weights again")
            time.sleep(TICK_S)


def have_ended(learning: list[Any]) -> bool:
    """Whether all ranks have returned. Raises what one of them raised, and RankDiedError where its process died."""
    ended, running = ray.wait(learning, num_returns=len(learning), timeout=0)
    try:
        ray.get(ended)
    except RayError as error:
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RedraftError):
            ended, running = ray.wait(learning, num_returns=len(learning), timeout=PEERS_S)
        _raise_if_one_died(learning, ended)
        raise
    return not running


def _raise_if_one_died(learning: list[Any], ended: list[Any]) -> None:
    """Raises RankDiedError where a rank's process died: what its peers raise then is that they lost it."""
    for result in ended:
        try:
            ray.get(result)
        except RayActorError as error:
            number = learning.index(result)
            problem = f"the process of learner rank {number} died; logs/learner-{number}.log may say why"
            raise RankDiedError(f"{problem}. Ray says: {faults.of_a_call(error)}") from None
        except RayError:
            pass
