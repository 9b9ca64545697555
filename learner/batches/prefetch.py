"""Prefetch: the next batch is claimed and packed in a thread of its own while the current one is trained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from learner.batches.batch import Batch, prepare
from learner.config import LearnerSettings
from protocols.errors import DeadlineError
from protocols.replay_stats import ReplayStats
from replay.client import Claim, Client

POLL_S = 1.0  # how soon a waiting claim notices that the run is stopping
CROWDED = 0.5  # share of replay.max_bytes: above it a checkpoint lets replay forget, well before leases are held back
CULPRITS = {
    "groups": "actors: too few groups are ready",
    "straggler": "an actor: the group next in order is still open",
}
FLAT_CURE = (
    "Take easier tasks where they are wrong and harder ones where they are right, a larger sampling.temperature or "
    "rollout.episodes, partial credit, or replay.drop_flat: false"
)


class Prefetch:
    """Claims with a client of its own, for a waiting claim holds up every other request of its client."""

    def __init__(
        self,
        client: Client,
        settings: LearnerSettings,
        seed: int = 0,
        evaluating: Callable[[], bool] = lambda: False,
    ):
        """`seed` is the run's; while `evaluating` says so, no time counts towards the deadline."""
        self._evaluating = evaluating
        self._settings, self._client, self._seed = settings, client, seed
        self._stopping = threading.Event()
        self.reason = ""  # why the claim under way, or the last one, was not served yet
        self.crowded = False  # replay holds so much that a checkpoint should let it forget, as of the last claim
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next = _nothing()
        self._before = ReplayStats()  # replay's counts when a batch was last served

    def start(self, step: int, max_staleness: int) -> None:
        """Begins to claim the batch that the trainer will use when it has done `step` steps."""
        self._next = self._thread.submit(self._fetch, step, max_staleness)

    def ready(self, wait_s: float) -> bool:
        """Whether `take` would return at once; waits up to `wait_s` for that."""
        return bool(wait([self._next], wait_s).done)

    def take(self) -> Batch | None:
        """The batch last started; None when the run is stopping. Raises DeadlineError when none came in time."""
        batch, self._next = self._next.result(), _nothing()
        return batch

    def stop(self) -> None:
        """Makes a waiting `take` return None; safe from any thread."""
        self._stopping.set()

    def close(self) -> None:
        """Ends the thread, and gives back a batch that was claimed and not taken."""
        self._stopping.set()
        self._thread.shutdown()
        if self._next.exception() is None and (unused := self._next.result()):
            self._client.release(unused.ids)
        self._client.close()

    def _fetch(self, step: int, max_staleness: int) -> Batch | None:
        settings, began = self._settings, time.monotonic()
        self.reason = ""
        deadline = began + settings.claim_deadline_s
        while not self._stopping.is_set():
            wait_s = min(POLL_S, max(0.0, deadline - time.monotonic()))
            claim = self._client.claim(settings.batch_groups, step, max_staleness, wait_s)
            self.crowded = claim.stats.fullest > CROWDED
            if claim.groups:
                self._before = claim.stats
                return prepare(claim.groups, step, settings, claim.weights, self._seed)
            self.reason = claim.reason
            if self._evaluating():
                deadline = time.monotonic() + settings.claim_deadline_s
            if time.monotonic() >= deadline:
                raise _late(claim, settings, self._before)
        return None


def _nothing() -> Future[Batch | None]:
    """What is taken where no batch was asked for."""
    future: Future[Batch | None] = Future()
    future.set_result(None)
    return future


def _late(claim: Claim, settings: LearnerSettings, before: ReplayStats) -> DeadlineError:
    """What the learner says when no batch came: it knows replay's counts then and, `before`, when it last got one."""
    limit_s, wanted = settings.claim_deadline_s, f"{settings.batch_groups} groups make a batch"
    flat, broken, closed = (count(claim.stats) - count(before) for count in (_flat, _broken, _closed))
    if claim.reason == "groups" and broken > closed / 2:
        culprit = f"an environment that works (every episode of {broken} of {closed} groups broke off)"
        return DeadlineError("learner", culprit, limit_s, f"{wanted}. logs/actor-N.log say why they did")
    if claim.reason == "groups" and flat > closed / 2:
        culprit = f"groups that are not flat ({flat} of {closed} were filtered: all their answers scored the same)"
        return DeadlineError("learner", culprit, limit_s, f"{wanted}. {FLAT_CURE}")
    facts = ", ".join(f"{key} {value}" for key, value in claim.stats.to_json().items())
    detail = f"{wanted}; replay holds {facts}. Raise learner.claim_deadline_s if they are only slow"
    return DeadlineError("learner", CULPRITS.get(claim.reason, claim.reason), limit_s, detail)


def _flat(stats: ReplayStats) -> int:
    return stats.dropped.get("flat", 0)


def _broken(stats: ReplayStats) -> int:
    return stats.dropped.get("broken", 0)


def _closed(stats: ReplayStats) -> int:
    """Groups that were closed so far, but for those that stood open too long or were corrupt."""
    held = stats.ready + stats.claimed + stats.trained_total
    return held + sum(n for reason, n in stats.dropped.items() if reason != "corrupt")
