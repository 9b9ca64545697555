"""Shards: which service keeps a group, and how a claim is shared out among several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocols.replay_stats import ReplayStats


@dataclass(frozen=True, slots=True)
class Offer:
    """What one shard says of a claim: `ready` groups, and the counts that a claim brings with it.

    A sampler in the order of the leases tells the `orders` of the next groups, a random one its whole `mass`.
    `straggler` is the order of the first open group that would be too stale after the claim's step.
    """

    ready: int
    straggler: int
    stats: ReplayStats
    orders: list[int] | None = None
    mass: float = 0.0

    @classmethod
    def of(cls, header: dict) -> Offer:
        """The offer in a reply. Raises WireError when its counts are not those of this schema."""
        stats = ReplayStats.from_json(header["stats"])
        return cls(header["ready"], header["straggler"], stats, header.get("orders"), header.get("mass", 0.0))


def shard_of(group: bytes, shards: int) -> int:
    """The shard of a new group: rendezvous hashing, so that one more shard takes over its part of the groups only."""
    return max(
        range(shards), key=lambda shard: hashlib.blake2b(group + shard.to_bytes(4, "big"), digest_size=8).digest()
    )


def share(offers: Sequence[Offer], count: int, random: np.random.Generator) -> list[int] | None:
    """How many of `count` groups to claim from each shard; None when they have too few.

    Offers with `orders` are shared out in the order of the leases, those with `mass` by chance, in proportion to it.
    """
    ready = np.array([offer.ready for offer in offers])
    if ready.sum() < count:
        return None
    if (ordered := _ordered(offers)) is not None:
        return np.bincount([shard for _, shard in ordered[:count]], minlength=len(offers)).tolist()
    mass = np.array([offer.mass for offer in offers])
    shares = np.zeros(len(offers), np.int64)
    while (missing := count - int(shares.sum())) > 0:
        left = np.where(shares < ready, mass, 0.0)
        shares = np.minimum(shares + random.multinomial(missing, left / left.sum()), ready)
    return shares.tolist()


def overtakes(offers: Sequence[Offer], count: int) -> bool:
    """Whether `count` groups in the order of the leases would leave behind an open one that fits only now."""
    ordered = _ordered(offers)
    return ordered is not None and min(offer.straggler for offer in offers) < ordered[count - 1][0]


def first(offers: Sequence[Offer], count: int) -> list[tuple[int, int]]:
    """The first `count` groups in the order of the leases, each with its shard; none where the order does not matter.

    Shards answer one after another, and one that starts again answers late: what they say is true of one moment only
    where all say it again."""
    return (_ordered(offers) or [])[:count]


def last(offer: Offer, part: int) -> int:
    """The order of the last of `part` groups that a shard gives; -1 where the order does not matter."""
    return -1 if offer.orders is None else offer.orders[part - 1]


def _ordered(offers: Sequence[Offer]) -> list[tuple[int, int]] | None:
    """Orders of leases and their shards, the first first; None where the order does not matter."""
    if offers[0].orders is None:
        return None
    return sorted((order, shard) for shard, offer in enumerate(offers) for order in offer.orders or ())


def chances(offers: Sequence[Offer], shard: int) -> float:
    """What turns a group's chance within its shard, relative to an even choice there, into that among all shards."""
    if offers[shard].orders is not None:
        return 1.0
    ready, mass = sum(offer.ready for offer in offers), sum(offer.mass for offer in offers)
    return ready / offers[shard].ready * offers[shard].mass / mass


def weights(chances: np.ndarray, exponent: float) -> np.ndarray:
    """Importance weights float64[count], not yet scaled, of groups by their chance relative to an even choice."""
    return chances**-exponent
