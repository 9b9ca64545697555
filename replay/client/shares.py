"""Shards: which service keeps a group, and how a claim is shared out among several."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np


def place(group: bytes, shards: int) -> int:
    """The shard of a new group: rendezvous hashing, so that one more shard takes over its part of the groups only."""
    return max(
        range(shards), key=lambda shard: hashlib.blake2b(group + shard.to_bytes(4, "big"), digest_size=8).digest()
    )


def share(offers: Sequence[dict], count: int, random: np.random.Generator) -> list[int] | None:
    """How many of `count` groups to claim from each shard; None when they have too few.

    Offers with `orders` are shared out in the order of the leases, those with `mass` by chance, in proportion to it.
    """
    ready = np.array([offer["ready"] for offer in offers])
    if ready.sum() < count:
        return None
    if "orders" in offers[0]:
        places = sorted((order, shard) for shard, offer in enumerate(offers) for order in offer["orders"])
        return np.bincount([shard for _, shard in places[:count]], minlength=len(offers)).tolist()
    mass = np.array([offer["mass"] for offer in offers])
    shares = np.zeros(len(offers), np.int64)
    while (missing := count - int(shares.sum())) > 0:
        left = np.where(shares < ready, mass, 0.0)
        shares = np.minimum(shares + random.multinomial(missing, left / left.sum()), ready)
    return shares.tolist()


def overtakes(offers: Sequence[dict], count: int) -> bool:
    """Whether `count` groups in the order of the leases would leave behind an open one that fits only now."""
    if "orders" not in offers[0]:
        return False
    places = sorted(order for offer in offers for order in offer["orders"])
    return min(offer["straggler"] for offer in offers) < places[count - 1]


def chances(offers: Sequence[dict], shard: int) -> float:
    """What turns a group's chance within its shard, relative to an even choice there, into that among all shards."""
    if "mass" not in offers[shard]:
        return 1.0
    ready, mass = sum(offer["ready"] for offer in offers), sum(offer["mass"] for offer in offers)
    return ready / offers[shard]["ready"] * offers[shard]["mass"] / mass


def weights(chances: np.ndarray, exponent: float) -> np.ndarray:
    """Importance weights float64[count], not yet scaled, of groups by their chance relative to an even choice."""
    return chances**-exponent


def total(stats: Sequence[dict]) -> dict:
    """The counts of several shards as one."""
    first, *others = stats
    merged = dict(first)
    for other in others:
        for key, value in other.items():
            merged[key] = _merged(key, merged[key], value)
    return merged


def _merged(key: str, one, other):
    if key in ("step", "fullest"):
        return max(one, other)
    if key == "full":
        return one or other
    return dict(Counter(one) + Counter(other)) if isinstance(one, dict) else one + other
