"""Admission: how many groups may be leased now, and what holds new leases back, as people and the learner are told."""

from __future__ import annotations

import time
from collections.abc import Callable

from actors import mixture
from learner.bound import most_of
from protocols import metrics
from protocols.replay_stats import ReplayStats
from redraft.recipe import Recipe

LIMITS = ("none", "actors", "replay", "staleness", "evaluation")
"""Nothing; no actor is ready; replay is near its cap, or its disk is full; the staleness bound; that bound while actors
keep the weights that are evaluated."""
FULL_SHARE = 0.9  # of replay.max_bytes: above it no new group is leased


def admissible(eta: int, version: int, step: int, batch: int, held: int, running: int) -> int:
    """How many groups may be leased: (eta + version + 1) * batch - (accepted + running), as in AReaL.

    `version` is the step of the oldest weights that an actor may generate with, `running` the leases that are out.
    What was accepted is `step` batches, that the learner has used, and `held` groups that wait or are in use.
    """
    return max(0, (eta + version + 1) * batch - (step * batch + held + running))


def groups_at_once(recipe: Recipe) -> int:
    """How many groups one actor plays at once."""
    return mixture.groups_at_once(recipe.mixture, recipe.rollout, recipe.actors.groups)


def groups_in_play(recipe: Recipe) -> int:
    """Most groups that the actors of a recipe play at once."""
    actors = recipe.actors
    return (actors.autoscale.max if actors.autoscale else actors.count) * groups_at_once(recipe)


def beyond_the_bound(recipe: Recipe, count: int) -> str:
    """What to know of so many actors where the run finds its staleness bound: they may be more than that lets play."""
    batch = recipe.learner.batch_groups
    most = most_of(groups_in_play(recipe), batch)
    if recipe.learner.max_staleness != "auto" or most_of(count * groups_at_once(recipe), batch) <= most:
        return ""
    said = f"learner.max_staleness: auto goes by actors.count={recipe.actors.count} and stays at {most} or below"
    return f"{said}, which may leave some waiting: resume with actors.count={count}"


class Admission:
    """Admits groups while the learner trains, up to the staleness bound `bound`, which the learner says with each step.
    `tell` learns of each change of what limits the leases, and how many there were before it."""

    def __init__(self, batch_groups: int, bound: int, tell: Callable[[str, int], object]):
        self.bound = bound
        self._batch, self._limit = batch_groups, Limit(tell)

    def close(self) -> int:
        """None, since no actor is ready."""
        self._limit.note("actors")
        return 0

    def room(self, version: int, stats: ReplayStats, running: int, free: bool, evaluating: bool = False) -> int:
        """How many groups may be leased, derived from what replay holds, never counted here; see `admissible`. `free`
        says whether an actor has a place for one: without, no bound holds it back. With `evaluating` actors play test
        tasks beside them, and keep their weights."""
        if stats.full or stats.fullest > FULL_SHARE:
            self._limit.note("replay")
            return 0
        held = stats.claimed + stats.ready
        room = admissible(self.bound, version, stats.step, self._batch, held, running)
        self._limit.note("evaluation" if evaluating else "staleness" if free and not room else "none")
        return room


class Limit:
    """Counts seconds by what holds leases back. `tell` learns what that makes of a wait for groups, on each change, and
    the number of that: a remote call may overtake another."""

    def __init__(self, tell: Callable[[str, int], object]):
        self._tell, self._told, self._changes = tell, "", 0
        self._seen = time.monotonic()
        for limit in LIMITS:
            metrics.ADMISSION_SECONDS.labels(limit=limit)

    def note(self, limit: str) -> None:
        """It is `limit` now, and was since the last note."""
        now = time.monotonic()
        metrics.ADMISSION_SECONDS.labels(limit=limit).inc(now - self._seen)
        self._seen = now
        wait = limit if limit in ("replay", "staleness", "evaluation") else "groups"
        if wait != self._told:
            self._told = wait
            self._tell(wait, self._changes)
            self._changes += 1
