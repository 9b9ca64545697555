"""Tasks of minicraft: made at random, with no set of base items in both splits."""

from __future__ import annotations

from functools import cache

import numpy as np

from actors.environments.files import held_out

ITEMS = "abcdefghij"
BASE, INGREDIENTS = 5, 3
SIZES = {"train": 4000, "test": 500}  # tasks made when data.<split>_size says nothing


def generate(rng: np.random.Generator, split: str) -> dict:
    """A task without its id: sorted base items, and two recipes of which one, `good` (0 or 1), can be crafted."""
    while True:
        order = "".join(ITEMS[n] for n in rng.permutation(len(ITEMS)))
        base = "".join(sorted(order[:BASE]))
        if held_out(base) == (split == "test"):
            break
    good, bad = ([base[n] for n in rng.permutation(BASE)[:INGREDIENTS]] for _ in range(2))
    bad[rng.integers(INGREDIENTS)] = order[-1]  # not among the base items
    right = int(rng.integers(2))
    recipes = ["".join(bad)] * 2
    recipes[right] = "".join(good)
    return {"base": base, "recipes": recipes, "good": right}


@cache
def made(split: str, size: int) -> tuple[dict, ...]:
    rng = np.random.Generator(np.random.Philox(("train", "test").index(split)))
    return tuple({"id": f"minicraft/{split}/{n}", **generate(rng, split)} for n in range(size))
