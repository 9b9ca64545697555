"""Tasks of minicraft: made at random, with no set of base items in both splits; or in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
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


def hindsight(tried: Sequence[tuple[str, bool]]) -> dict:
    """A task for `redraft question` out of items, and whether each was had: a recipe of some that were, beside one with
    something that was not. What stands where follows from the order in which they were tried."""
    had = [item for item, there in tried if there]
    missing = next(item for item, there in tried if not there)
    ingredients, other, good = had[:INGREDIENTS], had[INGREDIENTS - 1 : 2 * INGREDIENTS - 2], int(not tried[0][1])
    other.insert(ITEMS.index(missing) % INGREDIENTS, missing)
    recipes = ["".join(other)] * 2
    recipes[good] = "".join(ingredients)
    task = {"base": "".join(sorted(had)), "recipes": recipes, "good": good}
    reference = [*(f"+{item}" for item in ingredients), f"*{good + 1}"]
    return {**task, "query": question(task).removesuffix("\n"), "reference": reference}


def question(task: dict) -> str:
    return f"{task['base']};1{task['recipes'][0]};2{task['recipes'][1]}>\n"
