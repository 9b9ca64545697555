"""Leases: which task is played next, and who plays what."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from actors.tasks import Order
from protocols import traces
from protocols.keys import group_id
from protocols.turns import Lease

log = logging.getLogger("redraft.leases")
INCARNATION_LEASES = 1000  # fencing tokens of one incarnation: a resumed run leases under higher ones than it can know
PLAYS = 5  # a group that ends so often by its own fault without being closed is given up


@dataclass(slots=True)
class Live:
    """A lease that is out."""

    lease: Lease
    position: int
    actor: int
    since: float

    def record(self, end: str, error: str = "") -> None:
        """The span of a lease that ends now."""
        span, held_s = traces.leased(self.lease.group, self.lease.fencing_token), time.monotonic() - self.since
        traces.record("lease", span, held_s, error=error, end=end, lease=self.lease.fencing_token, order=self.position)


class LeaseBook:
    """Makes leases from the order of tasks, and leases again what was lost. Keeps nothing about closed groups.

    `known(ids)` tells which groups replay has already closed: they are skipped, so a resumed run plays none twice.
    `shard_of(id)` names the replay shard of a group that is leased for the first time in this incarnation of the run.
    """

    def __init__(
        self,
        order: Order,
        run_id: str,
        seed: int,
        cursor: int,
        incarnation: int,
        known: Callable[[list[bytes]], Collection[bytes]],
        shard_of: Callable[[bytes], str],
    ):
        self._order, self._run_id, self._seed, self._known, self._shard_of = order, run_id, seed, known, shard_of
        self._position, self._fencing_token = cursor, incarnation * INCARNATION_LEASES
        self._resumed = incarnation > 0
        self._again: deque[tuple[Lease, int]] = deque()
        self._lock = threading.Lock()  # the learner asks for the state from another thread
        self.live: dict[bytes, Live] = {}
        self._failed: Counter[bytes] = Counter()  # by its own fault, so often; of groups that are not closed
        self._given_up: set[bytes] = set()

    @property
    def state(self) -> dict:
        """What a resumed run needs to go on from now, in JSON values: its `position` and the state of the order.

        `position` is the first that may still have to be played: all before it are closed in replay or given up.
        """
        with self._lock:
            unfinished = [live.position for live in self.live.values()] + [position for _, position in self._again]
            return {"position": min(unfinished, default=self._position)} | self._order.state

    @property
    def given_up(self) -> int:
        """How many groups were given up."""
        return len(self._given_up)

    def give(self, actor: int, count: int, now: float) -> list[Lease]:
        """`count` leases for `actor`: lost ones first, so that no group falls behind, then new ones."""
        with self._lock:
            given = [self._again.popleft() for _ in range(min(count, len(self._again)))]
            given += self._fresh(count - len(given))
            for lease, position in given:
                self.live[lease.group] = Live(lease, position, actor, now)
            return [lease for lease, _ in given]

    def _fresh(self, count: int) -> list[tuple[Lease, int]]:
        made: list[tuple[Lease, int]] = []
        while len(made) < count:
            batch = [self._make(self._position + n) for n in range(count - len(made))]
            self._position += len(batch)
            known = self._known([lease.group for lease, _ in batch]) if self._resumed else ()
            made += [(lease, position) for lease, position in batch if lease.group not in known]
        return made

    def _make(self, position: int) -> tuple[Lease, int]:
        epoch, task = self._order.task(position)
        group = group_id(self._run_id, epoch, task["id"])
        return Lease(group, self._fencing_token, position, task, self._seed + position, self._shard_of(group)), position

    def closed(self, plays: Iterable[tuple[bytes, int] | tuple[bytes, int, float | None]]) -> None:
        """These plays (group, fencing token, success rate if known) ended well.

        A late word of an older play changes nothing. With a curriculum they may raise the level of what is leased next.
        """
        with self._lock:
            for group, token, *success in plays:
                if self._is_live(group, token):
                    live = self.live.pop(group)
                    lease = live.lease
                    live.record("closed")
                    self._failed.pop(group, None)
                    if self._order.closed(lease.task, success[0] if success else None, self._position):
                        log.info("level %d begins at position %d", self._order.level, self._position)

    def again(self, group: bytes, token: int, position: int, shard: str) -> bool:
        """Replay found this closed play corrupt on its disk: it is leased again, once, to the shard that had it.

        False when it is already, or will be in its turn.
        """
        with self._lock:
            waiting = group in self.live or any(lease.group == group for lease, _ in self._again)
            if waiting or group in self._given_up or position >= self._position:
                return False
            lease, _ = self._make(position)
            if lease.group != group:  # leased under a level that no checkpoint knew: its task comes in its own time
                return False
            higher = max(token + 1, lease.fencing_token)
            self._again.append((replace(lease, fencing_token=higher, shard=shard), position))
            return True

    def lost(self, group: bytes, token: int, blamed: bool = True, why: str = "") -> Lease | None:
        """This play ended without closing its group, `why`; it is leased again under the next fencing token.

        A group that was `blamed` PLAYS times is given up; a play whose actor died is not counted. Returns the lease
        that was lost, None if it was not out.
        """
        with self._lock:
            if not self._is_live(group, token):
                return None
            live = self.live.pop(group)
            live.record("lost", why)
            return self._lose(live, blamed)

    def _is_live(self, group: bytes, token: int) -> bool:
        return group in self.live and self.live[group].lease.fencing_token == token

    def _lose(self, live: Live, blamed: bool) -> Lease:
        lease = live.lease
        self._failed[lease.group] += blamed
        if self._failed[lease.group] < PLAYS:
            self._again.append((replace(lease, fencing_token=lease.fencing_token + 1), live.position))
        else:
            del self._failed[lease.group]
            self._given_up.add(lease.group)
        return lease

    def busy(self) -> Counter[int]:
        """How many leases each actor has."""
        return Counter(live.actor for live in self.live.values())

    def of(self, actor: int) -> list[tuple[bytes, int]]:
        """The plays (group, fencing token) of `actor`."""
        return [(group, live.lease.fencing_token) for group, live in self.live.items() if live.actor == actor]

    def overdue(self, before: float) -> list[tuple[bytes, int]]:
        """The plays leased before that time."""
        return [(group, live.lease.fencing_token) for group, live in self.live.items() if live.since < before]
