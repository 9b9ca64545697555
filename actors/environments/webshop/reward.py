"""What a purchase is worth: how much of what was asked for it has, less where it is of another kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from actors.environments.webshop.products import Product

ALIKE = 85  # token_set_ratio above which two texts mean the same
COLOURS = """
almond amber aqua beige black blue bronze brown burgundy camel charcoal cherry chestnut chocolate coffee copper coral
cream crimson cyan fuchsia gold gray green grey indigo ivory jade khaki lavender lemon lilac lime magenta mahogany
maroon mint mustard navy nude ochre olive orange peach pearl pink plum purple red rose rust salmon sand scarlet silver
slate tan taupe teal terracotta turquoise vanilla violet walnut white wine yellow
""".split()
OTHER_WORDS = frozenset(
    """
all an and any are as at best big by cute dark each extra fit for free fresh from full good great heavy high in inch
into is it its large light long low made men mens mini more most new non not of off old on one only or our out over
per plus pre pro real round set short size small soft super that the their these this to top two ultra up very wide
with without women womens you your
""".split()
)
OTHER_ENDINGS = ("able", "ed", "ful", "ible", "ish", "less", "ly", "ous")


def reward(goal: dict, wanted: Product, bought: Product, chosen: Iterable[str]) -> float:
    """The share of the goal's attributes, options and price that `bought` with the options `chosen` has, times how much
    it is of the kind of `wanted`: 0 to 1, where 1 is success."""
    options = [_coloured(value) for value in chosen]
    hits = sum(_has(bought, attribute) for attribute in goal["attributes"])
    hits += sum(any(_alike(_asked(option), one) for one in options) for option in goal["options"])
    hits += bought.price <= goal["limit"]
    return kinship(wanted, bought) * hits / (len(goal["attributes"]) + len(goal["options"]) + 1)


def kinship(wanted: Product, bought: Product) -> float:
    """1 for a product of the same kind, .5 for another, .1 or 0 where hardly a noun of the titles is the same."""
    asked = nouns(wanted.title)
    shared = len(asked & nouns(bought.title)) / len(asked) if asked else 0.2
    if shared < 0.1:
        return 0.1 if shared else 0.0
    same = wanted.query == bought.query or len(wanted.parts & bought.parts) >= 2 or shared > 0.2
    return 1.0 if same else 0.5


@lru_cache(maxsize=10_000)
def nouns(title: str) -> frozenset[str]:
    """The words of a title that may name a thing: in titles most words do, so it is those that hardly ever do which are
    left out (colours, function words, common adjectives and what ends like one)."""
    words = re.findall(r"[^\W\d_]{2,}", title.lower())
    return frozenset(
        word
        for word in words
        if word not in OTHER_WORDS and word not in COLOURS and not (len(word) > 6 and word.endswith(OTHER_ENDINGS))
    )


def _has(product: Product, attribute: str) -> bool:
    texts = (product.title, " ".join(product.features), product.description)
    return any(_alike(attribute, one) for one in product.attributes) or any(attribute in t.lower() for t in texts)


def _asked(option: list[str]) -> str:
    """An option of a goal as a text. A pair of name and value counts as a colour only where one of them is one."""
    if len(option) == 1:
        return _coloured(option[0])
    return next((colour for colour in COLOURS if colour in option), " ".join(option))


def _coloured(text: str) -> str:
    """The first colour by the alphabet that the text holds, in words too ("standard" holds tan); else the text."""
    return next((colour for colour in COLOURS if colour in text), text)


def _alike(one: str, other: str) -> bool:
    from rapidfuzz import fuzz, utils

    return fuzz.token_set_ratio(one, other, processor=utils.default_process) > ALIKE
