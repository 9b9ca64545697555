"""Answers the requests of consumers and of the controller. Every request may be sent again without harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protocols import metrics
from protocols.errors import RedraftError, WireError
from protocols.keys import GROUP_BYTES
from protocols.log_facts import about
from protocols.wire import SCHEMA, join, pack, shown, unpack
from replay.config import RESEND_S, SILENT_S
from replay.disk.spool import FULL, CorruptError
from replay.server.groups import Draft, HeldGroup, State
from replay.server.store import Store

log = logging.getLogger("redraft.replay")
MAX_REQUEST_BYTES = 8 << 20
FORGET_GROUPS = 64  # forgotten in one transaction, so that a checkpoint never blocks ingest for long
MOST = 2**31  # of any number in a request, but for
MOST_VERSION = 2**63  # a million for each incarnation, and copies that are fetched skip a thousand of these
CLOSED = (State.READY, State.CLAIMED, State.USED, State.FILTERED)


@dataclass(slots=True)
class Waiting:
    """A claim that is not satisfied yet. Times are of the monotonic clock. `last` is the order of the last group that
    it is to get, -1 where any will do."""

    holder: bytes
    request: int
    count: int
    step: int
    max_staleness: int
    until: float
    heard: float
    last: int = -1
    reason: str = "groups"


@dataclass(frozen=True, slots=True)
class Parcel:
    """Groups, with how many rows and bytes each has, and the index and blob of those rows."""

    groups: dict[bytes, tuple[int, int]]
    index: bytes
    blob: bytes


class RequestHandler:
    """Requests in, replies out through `send(identity, frames)`. All methods run on the service's thread."""

    def __init__(self, store: Store, send: Callable[[bytes, list[bytes]], None]):
        self._store, self._send = store, send
        self._answers: dict[str, Callable[[dict, bytes], dict | None]] = {
            "claim": self._on_claim,
            "offer": self._on_offer,
            "commit": self._on_commit,
            "checkpoint": self._on_checkpoint,
            "resume": self._on_resume,
            "known": self._on_known,
            "lease": self._on_lease,
            "abandon": self._on_abandon,
            "release": self._on_release,
            "corrupt": self._on_corrupt,
            "stats": self._on_stats,
            "about": self._on_about,
        }
        self._waiting: dict[bytes, Waiting] = {}
        self._replies: dict[bytes, tuple[int, list[bytes]]] = {}  # the last request of a client and its small reply
        now = time.monotonic()
        self._heard = {_name(held.holder): now for _, held in store.groups.of(State.CLAIMED)}
        self._clients: dict[bytes, float] = {}
        self._handed: dict[bytes, tuple[int, float, float]] = {}  # request, when to send again, pause after that
        self._forgetting: list[bytes] = []
        metrics.REPLAY_CLAIMS_EXPIRED.inc(0)  # so that it is exported
        self._tried = -1  # the store's `changes` when waiting claims were last tried

    def receive(self, frames: list[bytes]) -> None:
        """One message [identity, header]. A malformed one is refused and counted."""
        identity, *rest = frames
        try:
            message = unpack(rest[0] if len(rest) == 1 and len(rest[0]) <= MAX_REQUEST_BYTES else b"")
            request, op = _int(message, "id"), _text(message, "op")
        except WireError as error:
            self._store.refuse("request", str(error))
            return
        self._heard[_name(identity)] = self._clients[identity] = time.monotonic()
        last, reply = self._replies.get(identity, (-1, []))
        if request < last:
            return
        if request == last:
            self._send(identity, reply)
            return
        self._answer(identity, request, op, message)

    def _answer(self, identity: bytes, request: int, op: str, message: dict) -> None:
        try:
            if op not in self._answers:
                raise WireError(f"unknown request {shown(op)}")
            reply = self._answers[op](message, identity)
        except WireError as error:
            self._store.refuse("request", str(error))
            reply = {"error": str(error)}
        except RedraftError as error:
            reply = {"error": str(error)}
        except FULL as error:  # not answered: the client sends it again
            self._store.note_full(error)
            return
        if reply is not None:
            self._reply(identity, request, reply)

    def _reply(self, identity: bytes, request: int, fields: dict) -> None:
        frames = [pack({"schema": SCHEMA, "id": request, **fields})]
        self._replies[identity] = (request, frames)
        self._send(identity, frames)

    # -- requests: each returns the fields of its reply, or None when it is answered otherwise

    def _on_claim(self, message: dict, identity: bytes) -> dict | None:
        request, now = message["id"], time.monotonic()
        waiting = Waiting(
            holder=identity,
            request=request,
            count=_int(message, "count", 1),
            step=_int(message, "step"),
            max_staleness=_int(message, "max_staleness"),
            until=now + _float(message, "wait_s"),
            heard=now,
            last=_int(message, "last", -1) if "last" in message else -1,
        )
        if self._again(identity, request):
            return None
        known = self._waiting.get(identity)
        if known is not None and known.request == request:
            known.heard = now
            return None
        self._waiting[identity] = waiting
        self._try(waiting)
        return None

    def _on_commit(self, message: dict, identity: bytes) -> dict:
        ids, step = _ids(message), _int(message, "step")
        priorities = _priorities(message, len(ids))

        def work(draft: Draft) -> list[bytes]:
            pairs = zip(ids, priorities, strict=True)
            return [group for group, priority in pairs if not draft.commit(group, step, priority)]

        return {"unknown": self._store.change(work)}

    def _on_checkpoint(self, message: dict, identity: bytes) -> dict:
        step = _int(message, "step")
        done = self._store.groups.of(State.USED, State.FILTERED)
        self._forgetting = [group for group, held in done if max(held.uses, default=held.step) <= step]
        return {}

    def _on_resume(self, message: dict, identity: bytes) -> dict:
        step = _int(message, "step")
        held = [group for group, _ in self._store.groups.of(*State)]

        def work(draft: Draft) -> None:
            for group in held:
                draft.resume(group, step)
            draft.step = min(draft.step, step)

        self._store.change(work)
        self._forgetting = []
        self._handed.clear()
        self._waiting.clear()  # claims of a past incarnation must take no groups; a living client sends its again
        return {}

    def _on_known(self, message: dict, identity: bytes) -> dict:
        return {"ids": [group for group in _ids(message) if self._closed(group)]}

    def _on_lease(self, message: dict, identity: bytes) -> dict:
        """Leases, before their actors learn of them: from now on the learner waits for these groups."""
        ids, columns = _ids(message), [_ints(message, name) for name in ("leases", "orders")]
        columns.append(_ints(message, "versions", MOST_VERSION))
        if any(len(column) != len(ids) for column in columns):
            raise WireError(f"{len(ids)} groups are leased without a lease, an order and a version for each")

        def work(draft: Draft) -> None:
            for leased in zip(ids, *columns, strict=True):
                draft.lease(*leased)

        try:
            self._store.change(work)
        except FULL as error:  # nobody may start a group now: these are known from their first rows
            self._store.note_full(error)
        return {}

    def _on_abandon(self, message: dict, identity: bytes) -> dict:
        (group,), lease = _ids({"group": [message.get("group")]}, "group"), _int(message, "lease")
        self._store.change(lambda draft: draft.abandon(group, lease))
        return {}

    def _on_release(self, message: dict, identity: bytes) -> dict:
        self._give_back([group for group in _ids(message) if self._held_by(group, identity)])
        return {}

    def _on_corrupt(self, message: dict, identity: bytes) -> dict:
        """A client could not decode these groups of its claim."""
        self._discard_corrupt([group for group in dict.fromkeys(_ids(message)) if self._held_by(group, identity)])
        return {}

    def _on_offer(self, message: dict, identity: bytes) -> dict:
        """What a client with several shards needs to divide a claim among them."""
        count, step = _int(message, "count", 1), _int(message, "step")
        bound, ready = _int(message, "max_staleness"), self._store.ready
        self._filter_stale(step, bound)
        straggler = ready.straggler(self._opened(), step, bound)
        stats = self._store.stats().to_json()
        return {"ready": len(ready), "straggler": straggler, **ready.sampler.offer(count), "stats": stats}

    def _on_stats(self, message: dict, identity: bytes) -> dict:
        return {"stats": self._store.stats().to_json()}

    def _on_about(self, message: dict, identity: bytes) -> dict:
        return {"run": self._store.run_id, "settings": self._store.settings.model_dump()}

    # -- claims

    def _again(self, identity: bytes, request: int) -> bool:
        """Sends again what this request was already given, also by an earlier incarnation of the service."""
        if self._still_arriving(identity, request):
            return True
        of_all = self._store.groups.of(State.CLAIMED)
        claimed = [(group, held) for group, held in of_all if (held.holder, held.request) == (identity, request)]
        mine = [group for group, _ in claimed]
        if not mine:  # what it was given is used or given back: a late copy of it must not claim more
            return self._handed.get(identity, (-1,))[0] == request
        parcel = self._store.change(lambda draft: _read(draft, mine))
        if parcel is None:
            self._give_back([group for group in mine if self._held_by(group, identity)])
            self._handed.pop(identity, None)  # it is a new claim now
            return False
        chances = [held.chance for _, held in claimed]
        self._hand_out(identity, request, parcel, chances)
        return True

    def _still_arriving(self, identity: bytes, request: int) -> bool:
        """Whether what this request was given may still be on its way: a slow line must not be filled with copies."""
        handed, again_at, _ = self._handed.get(identity, (-1, 0.0, 0.0))
        return handed == request and time.monotonic() < again_at

    def _try(self, waiting: Waiting) -> None:
        """Satisfies a waiting claim if it can; filters the groups that are too stale for it."""
        self._filter_stale(waiting.step, waiting.max_staleness)
        ready = self._store.ready
        chosen, waiting.reason = ready.pick(self._opened(), waiting.count, waiting.step, waiting.max_staleness)
        if not chosen or ready.sampler.last(waiting.count) != waiting.last >= 0:
            return
        chances = ready.sampler.chances(chosen)
        stalenesses = [self._store.groups.held(group).staleness(waiting.step) for group in chosen]
        parcel = self._store.change(lambda draft: _take(draft, chosen, chances, waiting))
        if parcel is not None:
            for staleness in stalenesses:
                metrics.REPLAY_STALENESS.observe(staleness)
            del self._waiting[waiting.holder]
            self._hand_out(waiting.holder, waiting.request, parcel, chances)

    def _opened(self) -> Iterator[HeldGroup]:
        """The groups that are still played. One that has not begun, and may not for want of room, is none: room comes
        from what the learner uses, which must not wait for it."""
        may_begin = self._store.room > 0
        return (held for _, held in self._store.groups.of(State.OPEN) if held.rows or may_begin)

    def _filter_stale(self, step: int, max_staleness: int) -> None:
        stale = self._store.ready.stale(step, max_staleness)
        if not stale:
            return

        def work(draft: Draft) -> None:
            for group in stale:
                draft.filter_stale(group, step)

        self._store.change(work)

    def _hand_out(self, identity: bytes, request: int, parcel: Parcel, chances: list[float]) -> None:
        header = {
            "schema": SCHEMA,
            "id": request,
            "groups": [(group, rows, size) for group, (rows, size) in parcel.groups.items()],
            "chances": chances,
            "importance": self._store.settings.importance_exponent,
            "reason": "",
            "stats": self._store.stats().to_json(),
        }
        self._send(identity, [pack(header), parcel.index, parcel.blob])
        handed, _, pause = self._handed.get(identity, (-1, 0.0, 0.0))
        pause = min(2 * pause, SILENT_S) if handed == request else RESEND_S
        self._handed[identity] = (request, time.monotonic() + pause, pause)

    def _closed(self, group: bytes) -> bool:
        held = self._store.groups.get(group)
        return held.state in CLOSED if held is not None else self._store.spool.known(group)

    def _held_by(self, group: bytes, identity: bytes) -> bool:
        held = self._store.groups.get(group)
        return held is not None and held.state is State.CLAIMED and _name(held.holder) == _name(identity)

    def _give_back(self, groups: list[bytes]) -> None:
        def work(draft: Draft) -> None:
            for group in groups:
                draft.give_back(group)

        if groups:
            self._store.change(work)

    def _discard_corrupt(self, groups: list[bytes]) -> None:
        if not groups:
            return

        def work(draft: Draft) -> None:
            for group in groups:
                draft.discard_corrupt(group)

        self._store.change(work)
        log.error("discarded %d groups that cannot be decoded; they have to be played again", len(groups))

    # -- what happens without a request

    def wait_s(self) -> float:
        """Seconds after which `tick` has something to do."""
        if self._forgetting and not self._store.full:
            return 0.0
        until = min((waiting.until for waiting in self._waiting.values()), default=float("inf"))
        return min(max(until - time.monotonic(), 0.0), 1.0)

    def tick(self) -> None:
        """Tries waiting claims after a change, ends those whose time is up, forgets some groups, takes back claims."""
        try:
            if self._tried != self._store.changes:
                seen = self._store.changes
                for waiting in list(self._waiting.values()):
                    self._try(waiting)
                self._tried = seen
            self._forget_some()
            self._take_back_silent()
        except FULL as error:
            self._store.note_full(error)
        self._end_waits()

    def _end_waits(self) -> None:
        now = time.monotonic()
        for waiting in list(self._waiting.values()):
            if now >= waiting.until:
                del self._waiting[waiting.holder]
                fields = {"groups": [], "reason": waiting.reason, "stats": self._store.stats().to_json()}
                self._reply(waiting.holder, waiting.request, fields)
            elif now - waiting.heard > SILENT_S:
                del self._waiting[waiting.holder]

    def _forget_some(self) -> None:
        if not self._forgetting:
            return
        some = self._forgetting[:FORGET_GROUPS]

        def work(draft: Draft) -> None:
            for group in some:
                draft.forget(group)

        self._store.change(work)
        del self._forgetting[:FORGET_GROUPS]

    def _take_back_silent(self) -> None:
        oldest = time.monotonic() - self._store.settings.claim_lease_s
        for identity in [identity for identity, heard in self._clients.items() if heard < oldest]:
            del self._clients[identity]
            self._replies.pop(identity, None)
            self._handed.pop(identity, None)
        silent = {name for name, heard in self._heard.items() if heard < oldest}
        if not silent:
            return
        lost = [group for group, held in self._store.groups.of(State.CLAIMED) if _name(held.holder) in silent]
        if lost:
            self._give_back(lost)
            metrics.REPLAY_CLAIMS_EXPIRED.inc(len(lost))
            log.warning("gave back %d groups claimed by %s, which sent nothing for too long", len(lost), sorted(silent))
        for name in silent:
            del self._heard[name]


def _take(draft: Draft, groups: list[bytes], chances: list[float], waiting: Waiting) -> Parcel | None:
    """Claims these groups and packs their rows; None when one was corrupt, after which the claim is tried again."""
    parcel = _read(draft, groups)
    if parcel is not None:
        for group, chance in zip(groups, chances, strict=True):
            draft.claim(group, waiting.holder, waiting.request, chance)
    return parcel


def _read(draft: Draft, groups: list[bytes]) -> Parcel | None:
    """The rows of these groups; None when some are corrupt, which are then to be played again."""
    rows, sizes, whole = [], {}, True
    for group in groups:
        try:
            of_group = draft.rows(group)
        except CorruptError as error:
            with about(group=group.hex()):
                log.error("%s; the group is discarded and has to be played again", error)
            draft.discard_corrupt(group)
            whole = False
            continue
        rows += of_group
        sizes[group] = (len(of_group), draft.held(group).size)
    return Parcel(sizes, *join(rows)) if whole else None


def _name(identity: bytes) -> bytes:
    """The consumer of a client: claims live as long as any client of that name is heard."""
    return identity.rsplit(b"/", 1)[0]


def _int(message: dict, name: str, least: int = 0, most: int = MOST) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
        raise _wrong(name, value)
    return value


def _ints(message: dict, name: str, most: int = MOST) -> list[int]:
    values = message.get(name)
    if not isinstance(values, list):
        raise _wrong(name, values)
    return [_int({name: value}, name, most=most) for value in values]


def _float(message: dict, name: str) -> float:
    value = message.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < MOST:
        raise _wrong(name, value)
    return value


def _text(message: dict, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise _wrong(name, value)
    return value


def _wrong(name: str, value: object) -> WireError:
    return WireError(f"field {name!r} of the request is not valid: {shown(value)}")


def _priorities(message: dict, count: int) -> list[float | None]:
    given = message.get("priorities")
    if given is None:
        return [None] * count
    if not isinstance(given, list) or len(given) != count:
        raise WireError(f"{count} groups are committed without one priority for each")
    return [_float({"priority": value}, "priority") for value in given]


def _ids(message: dict, name: str = "ids") -> list[bytes]:
    value = message.get(name)
    values = value if isinstance(value, list) else [value]
    ids = [group for group in values if isinstance(group, bytes) and len(group) == GROUP_BYTES]
    if len(ids) != len(values):
        raise WireError(f"field {name!r} of the request holds something that is not a group id")
    return ids
