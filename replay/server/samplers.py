"""Samplers: which of the ready groups a claim gets. Each follows the groups as they become ready and are taken."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
from sortedcontainers import SortedSet

from replay.config import ReplaySettings
from replay.server.groups import NO_PRIORITY, HeldGroup


class Sampler(Protocol):
    """`pick` returns `count` different groups; at least as many must be ready. It removes none."""

    def add(self, group: bytes, held: HeldGroup) -> None: ...

    def remove(self, group: bytes) -> None: ...

    def pick(self, count: int) -> list[bytes]: ...

    def last(self, count: int) -> int:
        """The latest order of a lease among the next `count`; -1 where that does not matter."""
        ...

    def chances(self, groups: list[bytes]) -> list[float]:
        """How likely each of these picked groups was, relative to an even choice among all that are ready."""
        ...

    def offer(self, count: int) -> dict:
        """What a client with several shards must know to share `count` groups out: `orders` or `mass`."""
        ...


class Fifo:
    """In the order of the leases."""

    def __init__(self):
        self._in_order = SortedSet()
        self._orders: dict[bytes, int] = {}

    def add(self, group: bytes, held: HeldGroup) -> None:
        self._orders[group] = held.order
        self._in_order.add((held.order, group))

    def remove(self, group: bytes) -> None:
        self._in_order.remove((self._orders.pop(group), group))

    def pick(self, count: int) -> list[bytes]:
        return [group for _, group in self._in_order[:count]]

    def last(self, count: int) -> int:
        return self._in_order[count - 1][0]

    def chances(self, groups: list[bytes]) -> list[float]:
        return [1.0] * len(groups)

    def offer(self, count: int) -> dict:
        return {"orders": [order for order, _ in self._in_order[:count]]}


class Slots:
    """Groups in the slots 0.. without gaps, so that a random one is found at once."""

    def __init__(self):
        self.groups: list[bytes] = []
        self.of: dict[bytes, int] = {}

    def add(self, group: bytes) -> int:
        self.of[group] = len(self.groups)
        self.groups.append(group)
        return self.of[group]

    def remove(self, group: bytes) -> tuple[int, int]:
        """Moves the last group into the slot that becomes free; returns that slot and the last one."""
        slot, last = self.of.pop(group), self.groups.pop()
        if last != group:
            self.groups[slot], self.of[last] = last, slot
        return slot, len(self.groups)


class Uniform:
    """Any ready group with the same chance."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._slots = Slots()

    def add(self, group: bytes, held: HeldGroup) -> None:
        self._slots.add(group)

    def remove(self, group: bytes) -> None:
        self._slots.remove(group)

    def pick(self, count: int) -> list[bytes]:
        return self._random.sample(self._slots.groups, count)

    def last(self, count: int) -> int:
        return -1

    def chances(self, groups: list[bytes]) -> list[float]:
        return [1.0] * len(groups)

    def offer(self, count: int) -> dict:
        return {"mass": float(len(self._slots.groups))}


class SumTree:
    """Masses of slots 0.., summed pairwise in one array: leaves at `size`.., the total in cell 1."""

    def __init__(self, size: int = 1024):
        self._size = size
        self._cells = np.zeros(2 * size)

    @property
    def total(self) -> float:
        return float(self._cells[1])

    def get(self, slots: np.ndarray) -> np.ndarray:
        return self._cells[slots + self._size]

    def set(self, slots: np.ndarray, masses: np.ndarray) -> None:
        """slots int[N], all different; masses float[N]."""
        while slots.max() >= self._size:
            self._double()
        cells = slots + self._size
        self._cells[cells] = masses
        while cells[0] > 1:
            cells = np.unique(cells // 2)
            self._cells[cells] = self._cells[2 * cells] + self._cells[2 * cells + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """The slots where the running sum passes each of `masses` (float[N], from 0 to below the total)."""
        cells, left = np.ones(len(masses), np.int64), masses.copy()
        while cells[0] < self._size:
            cells *= 2
            below = self._cells[cells]
            right = left >= below
            left -= np.where(right, below, 0.0)
            cells += right
        return cells - self._size

    def _double(self) -> None:
        leaves = self._cells[self._size :]
        self._size *= 2
        self._cells = np.zeros(2 * self._size)
        self._cells[self._size : self._size + len(leaves)] = leaves
        level = self._size // 2
        while level:
            children = self._cells[2 * level : 4 * level]
            self._cells[level : 2 * level] = children[::2] + children[1::2]
            level //= 2


class Prioritised:
    """With a chance proportional to priority ** exponent (Schaul et al. 2016, arXiv 1511.05952, proportional variant).

    The learner gives priorities with its commits. A group that it has not used has the largest priority seen so far.
    """

    SMALLEST = 1e-6  # so that no group is never picked

    def __init__(self, seed: int, exponent: float):
        self._random = np.random.default_rng(seed)
        self._exponent = exponent
        self._slots, self._tree = Slots(), SumTree()
        self._largest = 0.0

    def add(self, group: bytes, held: HeldGroup) -> None:
        self._largest = max(self._largest, held.priority)
        priority = held.priority if held.priority != NO_PRIORITY else self._largest or 1.0
        priority = max(priority, self.SMALLEST)
        self._put(self._slots.add(group), priority**self._exponent)

    def remove(self, group: bytes) -> None:
        slot, last = self._slots.remove(group)
        moved = float(self._tree.get(np.array([last]))[0])
        self._put(last, 0.0)
        if slot != last:
            self._put(slot, moved)

    def pick(self, count: int) -> list[bytes]:
        """Draws one from each of `count` equal parts of the mass, and again for those that fell on the same group."""
        taken = np.empty(0, np.int64)
        masses = np.empty(0)
        while len(taken) < count:
            wanted = count - len(taken)
            points = (np.arange(wanted) + self._random.random(wanted)) * (self._tree.total / wanted)
            last = len(self._slots.groups) - 1
            found = np.unique(np.minimum(self._tree.find(points), last))
            found = found[self._tree.get(found) > 0]
            masses = np.concatenate([masses, self._tree.get(found)])
            taken = np.concatenate([taken, found])
            if len(found):
                self._tree.set(found, np.zeros(len(found)))
        self._tree.set(taken, masses)
        return [self._slots.groups[slot] for slot in taken]

    def last(self, count: int) -> int:
        return -1

    def chances(self, groups: list[bytes]) -> list[float]:
        masses = self._tree.get(np.array([self._slots.of[group] for group in groups]))
        return (len(self._slots.groups) * masses / self._tree.total).tolist()

    def offer(self, count: int) -> dict:
        return {"mass": self._tree.total}

    def _put(self, slot: int, mass: float) -> None:
        self._tree.set(np.array([slot]), np.array([mass]))


def make_sampler(settings: ReplaySettings) -> Sampler:
    if settings.sampler == "fifo":
        return Fifo()
    if settings.sampler == "uniform":
        return Uniform(settings.seed)
    return Prioritised(settings.seed, settings.priority_exponent)
