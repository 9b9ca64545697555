"""Texts that say the same in almost the same words, by how many of their words they share (Jaccard's index)."""

from __future__ import annotations

import math
import re
from collections import defaultdict

SAME = 0.8  # share of all words of two texts that both have, from which they count as the same (arXiv 2511.10395)
WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Its words in small letters, in their order."""
    return WORD.findall(text.lower())


class Distinct:
    """Takes texts that are like none before. A text without words is like every other such."""

    def __init__(self) -> None:
        self._kept: list[frozenset[str]] = []
        self._with: dict[str, list[int]] = defaultdict(list)  # by a word that whatever is like them must have, too

    def take(self, text: str) -> bool:
        """Whether it is new; then it is kept."""
        found = frozenset(words(text)) or frozenset({""})
        # Of two sets that share so much, some word is among the first few of both, in any one order of all words.
        first = sorted(found)[: len(found) - math.ceil(SAME * len(found)) + 1]
        for number in {number for word in first for number in self._with.get(word, ())}:
            other = self._kept[number]
            if len(found & other) >= SAME * len(found | other):
                return False
        for word in first:
            self._with[word].append(len(self._kept))
        self._kept.append(found)
        return True
