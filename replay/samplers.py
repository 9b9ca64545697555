"""Samplers: which ready groups a claim gets, or why it has to wait."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from replay.groups import Record

Held = tuple[bytes, Record]


class Sampler(Protocol):
    """Picks `count` of the `ready` groups, or none and the reason: "groups" (too few) or "straggler"."""

    def pick(
        self, ready: Sequence[Held], opened: Iterable[Held], count: int, step: int, max_staleness: int
    ) -> tuple[list[bytes], str]: ...


class Fifo:
    """In the order of the leases. An open group that came earlier and would be too stale after this step is waited for.

    That wait ends when the group closes, is abandoned or is leased again: the controller's lease deadline bounds it.
    """

    def pick(self, ready, opened, count, step, max_staleness):
        if len(ready) < count:
            return [], "groups"
        chosen = heapq.nsmallest(count, ready, key=_place)
        last = chosen[-1][1].order
        for _, record in opened:
            fits_only_now = record.staleness(step) <= max_staleness < record.staleness(step + 1)
            if record.order < last and fits_only_now:
                return [], "straggler"
        return [group for group, _ in chosen], ""


class Uniform:
    """Any ready group with the same chance."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def pick(self, ready, opened, count, step, max_staleness):
        if len(ready) < count:
            return [], "groups"
        return [group for group, _ in self._random.sample(sorted(ready, key=_place), count)], ""


def make_sampler(name: str, seed: int) -> Sampler:
    return Fifo() if name == "fifo" else Uniform(seed)


def _place(held: Held) -> tuple[int, bytes]:
    return held[1].order, held[0]
