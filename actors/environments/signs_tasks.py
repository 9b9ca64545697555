"""Tasks of signs: every target that some signs between the digits of a split hit."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations, permutations, product

import numpy as np

COUNT = 4  # digits in a question
SIGNS = tuple(product("+-", repeat=COUNT - 1))
TEST_SHARE = 0.2


def value(attempt: str) -> int:
    """What a well-formed attempt is worth: "7+1-2-8" -> -2."""
    return sum(int(term) for term in re.findall(r"[+-]?\d", attempt))


def attempt_of(digits: str, signs: tuple[str, ...]) -> str:
    return digits[0] + "".join(sign + digit for sign, digit in zip(signs, digits[1:], strict=True))


@cache
def targets_of(digits: str) -> dict[int, tuple[tuple[str, ...], ...]]:
    """Target -> the sign choices that hit it."""
    found: dict[int, tuple[tuple[str, ...], ...]] = {}
    for signs in SIGNS:
        target = value(attempt_of(digits, signs))
        found[target] = (*found.get(target, ()), signs)
    return found


@cache
def orders_of(split: str) -> tuple[str, ...]:
    """Every order of every set of digits of a split: about 80 % of the 126 sets are for training."""
    sets = list(combinations("123456789", COUNT))
    shuffled = np.random.Generator(np.random.Philox(0)).permutation(len(sets))
    tests = round(TEST_SHARE * len(sets))
    chosen = shuffled[:tests] if split == "test" else shuffled[tests:]
    return tuple("".join(order) for n in sorted(chosen) for order in permutations(sets[n]))


@cache
def tasks_of(split: str) -> tuple[dict, ...]:
    """All tasks of a split, shuffled, so that the first n of them are a fair sample."""
    found = [
        {"id": f"signs/{digits}>{target}", "digits": digits, "target": target, "level": right[0].count("-")}
        for digits in orders_of(split)
        for target, right in targets_of(digits).items()
    ]
    return tuple(found[n] for n in np.random.Generator(np.random.Philox(1)).permutation(len(found)))
