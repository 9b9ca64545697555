"""A WebShop of three products: its files, and an environment in which any text is some action of the page."""

from __future__ import annotations

import json
from pathlib import Path

from actors.environments.webshop import pages
from actors.environments.webshop.environment import Webshop

KETTLE, POT, LAMP = "B00KETTLE1", "B00TEAPOT2", "B000LAMP04"
PRODUCTS = [
    {
        "asin": KETTLE,
        "name": "Whistling Kettle",
        "full_description": "This kettle boils water.",
        "small_description": ["steel", "has a whistle"],
        "pricing": "$10.00",
        "customization_options": {
            "Color": [{"value": "Red"}, {"value": " Blue/Green "}],
            "size": [{"value": "Small"}],
            "material": None,
        },
        "category": "garden",
        "query": " Kettles ",
        "product_category": "Home & Kitchen › Kettles",
        "images": [],
    },
    {
        "asin": POT,
        "name": "Tea Pot with Kettle Lid",
        "full_description": "",
        "small_description": "brews tea",
        "pricing": "$12.50 to $1,020.00",
        "customization_options": {},
        "category": "garden",
        "query": "tea pots",
        "product_category": "Home & Kitchen › Pots",
        "images": [],
    },
    {
        "asin": LAMP,
        "name": "Desk Lamp",
        "full_description": None,
        "small_description": [],
        "pricing": None,
        "customization_options": {"size": [{"value": "Small"}, {"value": "Large"}]},
        "category": "electronics",
        "query": "lamps",
        "product_category": "Electronics › Lamps",
        "images": [],
    },
]
FACTS = {
    KETTLE: {
        "attributes": ["easy clean", "heavy duty"],
        "instruction": "find a kettle that is easy to clean",
        "instruction_attributes": ["easy to clean"],
    },
    LAMP: {"attributes": ["bright"], "instruction": "i want a lamp", "instruction_attributes": ["bright"]},
}


def write(folder: Path, products=PRODUCTS, facts=FACTS, people: dict | None = None) -> Path:
    """`folder` with the files of WebShop."""
    (folder / "items_shuffle_1000.json").write_text(json.dumps(products))
    (folder / "items_ins_v2_1000.json").write_text(json.dumps(facts))
    if people is not None:
        (folder / "items_human_ins.json").write_text(json.dumps(people))
    return folder


class AnyWords(Webshop):
    """Whatever is said is a search, a click or, one time in five, refused: a model that knows nothing shops at random.

    What can be read as an action is left alone, as those of a corrected trajectory are.
    """

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        if "Action:" in text:
            return super().act(text)
        which, refused = divmod(sum(map(ord, text)), 5)
        found = pages.clickable(self._page())
        choices = [f"click[{one}]" for one in found if one not in ("search", "back to search", "< prev")]
        choices += ["click[buy now]"] * 4 if "buy now" in found else ["search[kettle or lamp]"]
        return super().act(choices[which % len(choices)] if refused else "nonsense")
