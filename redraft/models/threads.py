"""How many threads steps compute with: all cores', or fewer, where other processes keep cores busy, or a step is small.

Threads wait for each other at every operation, actively. Where one of them has to wait for its core, so do all, and a
step with two threads can take several times as long as with one. Nobody knows that beforehand, so it is tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

TRIES = 2  # steps with each number
AGAIN = 100  # steps after which it is tried anew
SLOW = 3.0  # and as soon as a step takes so many times longer than it did


def up_to(cores: int) -> list[int]:
    """The numbers to be tried: all cores, and powers of two below."""
    return [cores, *(1 << n for n in reversed(range(cores.bit_length())) if 1 << n < cores)]


class Threads:
    """Each of these numbers is tried in its turn; what does most a second is used until they are tried again."""

    def __init__(self, numbers: Sequence[int]):
        self._numbers = tuple(dict.fromkeys(numbers))
        self._trials: list[int] = []
        self._rates: dict[int, float] = {}
        self._left = 0
        self._begin()

    @contextmanager
    def step(self, work: int) -> Iterator[None]:
        """One step, which does so much."""
        number = self.next()
        torch.set_num_threads(number)
        began = time.perf_counter()
        yield
        self.took(number, work / (time.perf_counter() - began))

    def next(self) -> int:
        return self._trials.pop(0) if self._trials else max(self._rates, key=self._rates.__getitem__)

    def took(self, number: int, rate: float) -> None:
        """A step with so many threads did so much a second."""
        self._left -= 1
        slow = rate * SLOW < self._rates.get(number, 0.0)
        self._rates[number] = max(rate, self._rates.get(number, 0.0))
        if not self._trials and (slow or self._left <= 0):
            self._begin()

    def _begin(self) -> None:
        self._trials = [*self._numbers] * TRIES
        self._rates = {}
        self._left = AGAIN
