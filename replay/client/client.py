"""What actors, the learner and the controller hold of replay: Producer sends rows, Client asks for groups."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocols.errors import RedraftError, WireError
from protocols.replay_stats import ReplayStats, combined
from protocols.turns import Group, Lease
from protocols.wire import ENTRY, split, whole_group
from replay.client import shares
from replay.client.link import Link, Reply
from replay.client.producer import Producer
from replay.config import LOST_CLAIM, ClientKeys, Endpoints

__all__ = ["Claim", "Client", "Producer"]
log = logging.getLogger("redraft.replay")
LARGEST = 2.0**30  # priority
SHARE_S = 0.02  # between two looks at several shards that have too few groups


@dataclass(frozen=True, slots=True)
class Claim:
    """Groups claimed, or none and why: "groups" (too few are ready) or "straggler".

    `stats` are the counts at that time, of all shards that were asked.
    `weights` float32[groups] undo the bias of a sampler that prefers some groups; the largest is 1.
    """

    groups: list[Group]
    reason: str
    stats: ReplayStats = field(default_factory=ReplayStats)
    weights: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))


class Client:
    """Requests to all shards as if they were one; safe to use from any thread. Claims belong to `name`.

    A request without an answer is sent again; after `timeout_s` DeadlineError is raised, naming the shard. Who must
    commit while a claim waits uses a second client of the same name.
    """

    def __init__(self, shards: Sequence[Endpoints], name: str, keys: ClientKeys | None = None, timeout_s: float = 30.0):
        self._name, self._keys, self._timeout_s = name, keys, timeout_s
        self._random = np.random.default_rng()
        self._closed = threading.Event()
        self._shards: list[Endpoints] = []
        self._links: list[Link] = []
        self.grow(shards)

    def grow(self, shards: Sequence[Endpoints]) -> None:
        """Connects to the shards of this list that are new."""
        for shard in shards[len(self._links) :]:
            self._shards.append(shard)
            self._links.append(Link(shard.serve, self._name, self._keys, self._timeout_s))

    def claim(self, count: int, step: int, max_staleness: int, wait_s: float) -> Claim:
        """`count` groups for the trainer at `step`, none staler than `max_staleness`; or none within `wait_s`."""
        wanted = {"step": step, "max_staleness": max_staleness}
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            if len(self._links) == 1:
                claim = self._claim(self._links[0], left_s, 1.0, count=count, **wanted)
            else:
                claim = self._claim_shared(count, wanted)
            if claim.groups:
                return replace(claim, weights=(claim.weights / claim.weights.max()).astype(np.float32))
            if left_s == 0.0:
                return claim
            if len(self._links) > 1:
                self._closed.wait(min(SHARE_S, left_s))

    def _claim_shared(self, count: int, wanted: dict) -> Claim:
        """One try: each shard says what it has, and gives its part or none does. Where the order matters each says it
        twice: a group that was leased, or closed, when some had answered is seen then, and the next try counts with it.
        """
        links = list(self._links)
        offers = _offers(links, count, wanted)
        stats = combined([offer.stats for offer in offers])
        parts = shares.share(offers, count, self._random)
        if parts is None:
            return Claim([], "groups", stats)
        if chosen := shares.first(offers, count):
            again = _offers(links, count, wanted)
            if shares.first(again, count) != chosen:
                return Claim([], "groups", stats)
            if shares.overtakes(again, count):
                return Claim([], "straggler", stats)
        claims: list[Claim] = []
        try:
            for shard, (link, part) in enumerate(zip(links, parts, strict=True)):
                if part:
                    last, chances = shares.last(offers[shard], part), shares.chances(offers, shard)
                    claims.append(self._claim(link, 0.0, chances, count=part, last=last, **wanted))
        finally:
            whole = len(claims) == sum(map(bool, parts)) and all(claim.groups for claim in claims)
            if not whole:
                self._release_quietly([group.id for claim in claims for group in claim.groups])
        if not whole:
            return Claim([], next(claim.reason for claim in claims if not claim.groups), stats)
        weights = np.concatenate([claim.weights for claim in claims])
        return Claim([group for claim in claims for group in claim.groups], "", stats, weights)

    def _release_quietly(self, ids: list[bytes]) -> None:
        """What cannot be released now comes back when this client was silent for `claim_lease_s`."""
        for link in list(self._links) if ids else ():
            try:
                link.ask("release", ids=ids)
            except RedraftError as error:
                log.warning("%d groups could not be released: %s", len(ids), error)

    def _claim(self, link: Link, wait_s: float, chances: float, **wanted) -> Claim:
        """A claim on one shard, whose groups are `chances` times as likely as it knows; weights not yet scaled."""
        reply = link.ask("claim", wait_s, **wanted)
        header = reply[0]
        stats = ReplayStats.from_json(header["stats"])
        groups, corrupt = _groups(reply)
        if corrupt:
            log.error("replay served %d groups that cannot be decoded: %s", len(corrupt), corrupt[0][1])
            link.ask("corrupt", ids=[group for group, _ in corrupt])
            link.ask("release", ids=[group.id for group in groups])
            return Claim([], "groups", stats)
        weights = shares.weights(np.array(header.get("chances", ())) * chances, header.get("importance", 0.0))
        return Claim(groups, header["reason"], stats, weights)

    def commit(self, ids: list[bytes], step: int, priorities: Sequence[float] | None = None) -> None:
        """These claimed groups were used by `step`, which gives them these `priorities` for further uses.

        Raises RedraftError when that claim was lost to another use.
        """
        given = None if priorities is None else np.nan_to_num(np.asarray(priorities, np.float64), nan=0.0)
        given = None if given is None else given.clip(0.0, LARGEST).tolist()
        replies = self._all("commit", ids=ids, step=step, priorities=given)
        unknown = set(ids).intersection(*(reply["unknown"] for reply in replies))
        if unknown:
            raise RedraftError(
                f"step {step} cannot commit {len(unknown)} groups that replay does not know: {LOST_CLAIM}"
            )

    def checkpoint(self, step: int) -> None:
        """A durable checkpoint covers `step`: replay may forget the groups used up to it."""
        self._all("checkpoint", step=step)

    def resume(self, step: int) -> None:
        """Undoes what came after `step`: uses, claims whoever holds them, and plays that have not ended."""
        self._all("resume", step=step)

    def release(self, ids: list[bytes]) -> None:
        """Gives back these groups, claimed under this client's name and not used."""
        if ids:
            self._all("release", ids=ids)

    def known(self, ids: list[bytes]) -> set[bytes]:
        """Which of these groups are closed: ready, claimed, used, filtered or forgotten."""
        return {group for reply in self._all("known", ids=ids) for group in reply["ids"]}

    def lease(self, leases: Iterable[tuple[Lease, int]]) -> None:
        """Actors with these weights versions are about to be given these leases: a claim waits for them from now on, as
        for groups whose rows have begun to come."""
        given = list(leases)
        for where, link in self._each():
            mine = [(lease, version) for lease, version in given if lease.shard == where.ingest]
            if mine:
                link.ask(
                    "lease",
                    ids=[lease.group for lease, _ in mine],
                    leases=[lease.fencing_token for lease, _ in mine],
                    orders=[lease.order for lease, _ in mine],
                    versions=[version for _, version in mine],
                )

    def abandon(self, group: bytes, lease: int, shard: str = "") -> None:
        """Drops the open rows of plays of `group` up to `lease` and refuses later ones of them.

        `shard` is the ingest endpoint of the one that keeps the group; "" where there is one only.
        """
        for where, link in self._each():
            if shard in ("", where.ingest):
                link.ask("abandon", group=group, lease=lease)

    def stats(self) -> ReplayStats:
        """Counts over all shards; with each corrupt group, the ingest endpoint of its shard."""
        found = []
        for shard, link in self._each():
            stats = ReplayStats.from_json(link.ask("stats")[0]["stats"])
            corrupt = tuple(replace(group, shard=shard.ingest) for group in stats.corrupt)
            found.append(replace(stats, corrupt=corrupt))
        return combined(found)

    def about(self) -> list[tuple[str, dict]]:
        """For each shard: the run whose turns it keeps, and its settings."""
        return [(reply["run"], reply["settings"]) for reply in self._all("about")]

    def heard(self) -> float | None:
        """Has each service hear of this client: for how many seconds claims last without another word, at least; None
        where none answers."""
        lasts = []
        for link in list(self._links):
            try:
                lasts.append(link.ask("about")[0]["settings"]["claim_lease_s"])
            except RedraftError:  # who needs it says so
                continue
        return min(lasts, default=None)

    def close(self) -> None:
        self._closed.set()
        for link in self._links:
            link.close()

    def _each(self) -> list[tuple[Endpoints, Link]]:
        """All shards that it is connected to, also while one more joins: `grow` is called in another thread."""
        return list(zip(self._shards, self._links, strict=False))

    def _all(self, op: str, **fields) -> list[dict]:
        """The headers of what each shard answers."""
        return [link.ask(op, **fields)[0] for link in list(self._links)]


def _offers(links: Sequence[Link], count: int, wanted: dict) -> list[shares.Offer]:
    """What each shard has for such a claim."""
    return [shares.Offer.of(link.ask("offer", count=count, **wanted)[0]) for link in links]


def _groups(reply: Reply) -> tuple[list[Group], list[tuple[bytes, Exception]]]:
    """The decoded groups of a claim; and the ids of the corrupt ones, with what is wrong."""
    header, index, blob = reply
    index_start = blob_start = 0
    groups, corrupt = [], []
    for group, rows, size in header["groups"]:
        index_end, blob_end = index_start + rows * ENTRY.size, blob_start + size
        try:
            groups.append(whole_group(split(index[index_start:index_end], blob[blob_start:blob_end])))
        except WireError as error:
            corrupt.append((group, error))
        index_start, blob_start = index_end, blob_end
    return groups, corrupt
