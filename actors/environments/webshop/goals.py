"""Goals of WebShop: a wish with its options and a price that must not be exceeded, in one order that means nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random

from actors.environments.files import held_out
from actors.environments.webshop.files import HUMAN
from actors.environments.webshop.products import Catalogue, Wish
from protocols.errors import SettingError

SEED = 233
LIMITS = range(10, 1000, 10)
NEXT = 4  # limits above the price of which two are drawn
NO_LIMIT = 1_000_000.0
MOST = 1_000_000  # goals
TEST, DEVELOPMENT = range(500), range(500, 1500)  # of the goals of people, as in the paper


def goals(catalogue: Catalogue, split: str) -> list[dict]:
    """The goals of split "train" or "test" as maps: id, asin, instruction, attributes, options ([name, value], or
    [value] where people wrote them), limit. An id holds the goal's place in the whole order.

    Train and test ask for different products; but people's goals are split as in the paper, whose 1,000 goals for
    development are in neither. Raises SettingError where there are no goals, or too many.
    """
    found = list(_all(catalogue))
    Random(SEED).shuffle(found)
    numbered = [{"id": f"webshop/{number}", **goal} for number, goal in enumerate(found)]
    if not catalogue.human:
        return [goal for goal in numbered if held_out(f"webshop/{goal['asin']}") == (split == "test")]
    if len(numbered) <= DEVELOPMENT.stop:
        problem = f"people wrote {len(numbered)} goals for its products, and those after {DEVELOPMENT.stop} are trained"
        raise SettingError("data.path", problem, f"Bring more products, or leave {HUMAN} out")
    return numbered[: TEST.stop] if split == "test" else numbered[DEVELOPMENT.stop :]


def _all(catalogue: Catalogue) -> Iterator[dict]:
    draw = Random(SEED)
    asked = (catalogue.products[wish.asin].options for wish in catalogue.wishes if wish.options is None)
    if (many := sum(math.prod(map(len, options.values())) for options in asked)) > MOST:
        problem = f"the options of its products make {many:,} goals; {MOST:,} are the most"
        raise SettingError("data.path", problem, "Name fewer products")
    for wish in catalogue.wishes:
        limit = _limit(catalogue.products[wish.asin].price, draw)
        price = "" if limit == NO_LIMIT else f", and price lower than {limit:.2f} dollars"
        for options in _choices(catalogue, wish):
            pairs = ", and ".join(": ".join(option) for option in options)
            told = f" with {pairs}" if pairs and wish.options is None else ""
            yield {
                "asin": wish.asin,
                "instruction": f"{wish.instruction}{told}{price}",
                "attributes": list(wish.attributes),
                "options": options,
                "limit": limit,
            }


def _choices(catalogue: Catalogue, wish: Wish) -> Iterator[list[list[str]]]:
    if wish.options is not None:
        yield [[value] for value in wish.options]
        return
    listed = sorted(catalogue.products[wish.asin].options.items())
    for values in itertools.product(*(values for _, values in listed)):
        yield [[name, value] for (name, _), value in zip(listed, values, strict=True)]


def _limit(price: float, draw: Random) -> float:
    above = [limit for limit in LIMITS if limit > price][:NEXT]
    return float(max(draw.sample(above, 2))) if len(above) > 1 else NO_LIMIT
