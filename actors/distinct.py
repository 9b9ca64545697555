"""Texts that say the same in almost the same words, by how many of their words they share (Jaccard's index)."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable

SAME = 0.8  # share of all words of two texts that both have, from which they count as the same (arXiv 2511.10395)
WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Its words in small letters, in their order."""
    return WORD.findall(text.lower())


class Distinct:
    """Takes texts, as their words, that are like none before. One without words is like every other such."""

    def __init__(self) -> None:
        self._kept: list[frozenset[str]] = []
        self._with: dict[str, list[int]] = defaultdict(list)  # by a word that whatever is like them must have, too

    def take(self, text: Iterable[str]) -> bool:
        """Whether it is new; then it is kept."""
        found = frozenset(text) or frozenset({""})
        if not self.new(found):
            return False
        for word in _first(found):
            self._with[word].append(len(self._kept))
        self._kept.append(found)
        return True

    def new(self, text: Iterable[str]) -> bool:
        """Whether it is like none that was kept."""
        found = frozenset(text) or frozenset({""})
        others = {number for word in _first(found) for number in self._with.get(word, ())}
        return not any(_alike(found, self._kept[number]) for number in others)


def _first(found: frozenset[str]) -> list[str]:
    """Of two sets that are alike some word is among these of both: the first ones in an order of all words."""
    return sorted(found)[: len(found) - math.ceil(SAME * len(found)) + 1]


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= SAME * len(one | other)
