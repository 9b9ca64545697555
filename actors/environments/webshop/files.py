"""Reads what a shop sells, and what people ask of it, from the files of WebShop that a user brings.

items_shuffle*.json      a list of products
items_ins_v2*.json       {asin: {attributes, instruction, instruction_attributes}}
items_human_ins.json     {asin: [{instruction, instruction_attributes, instruction_options}]}, where people's own
                         instructions are to be played; without it each combination of options is a goal
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from actors.environments.webshop.products import NO_ATTRIBUTES, UNPRICED, Catalogue, Product, Wish
from protocols.errors import SettingError

PRODUCTS, ATTRIBUTES, HUMAN = "items_shuffle", "items_ins_v2", "items_human_ins.json"
LONGEST_ASIN = 10
AMOUNT = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")


def read(path: str) -> Catalogue:
    """The catalogue in a folder. Raises SettingError that names the file, and the product that is wrong."""
    folder = Path(path)
    cure = f"Name a folder with WebShop's {PRODUCTS}*.json and {ATTRIBUTES}*.json, or leave it out"
    try:
        found = sorted(folder.glob(f"{PRODUCTS}*.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"it must hold one file {PRODUCTS}*.json, and holds {names}")
        facts = _maps(folder / found[0].name.replace(PRODUCTS, ATTRIBUTES))
        people = _json(folder / HUMAN, dict) if (folder / HUMAN).exists() else None
        products: dict[str, Product] = {}
        for place, row in enumerate(_json(found[0], list)):
            _add(products, row, facts, f"product {place} of {found[0].name}")
        said = _named(products, facts) if people is None else _said(products, people)
        return Catalogue(products, tuple(said), people is not None)
    except (OSError, ValueError) as error:
        raise SettingError("data.path", f"{path!r} cannot be used: {error}", cure) from error


def prices(text: Any) -> tuple[float, ...]:
    """One price or two, of "$10.99" or "$10.99 to $1,020.00"."""
    return tuple(float(amount.replace(",", "")) for amount in AMOUNT.findall(_text(text))[:2]) or (UNPRICED,)


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file.name} is no JSON: {error}") from None
    if not isinstance(found, kind):
        raise ValueError(f"{file.name} is no {kind.__name__}")
    return found


def _maps(file: Path) -> dict[str, dict]:
    found = _json(file, dict)
    wrong = next((asin for asin, fact in found.items() if not isinstance(fact, dict)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} of {file.name} is no map")
    return found


def _add(products: dict[str, Product], row: Any, facts: dict[str, dict], place: str) -> None:
    """Adds a product, unless it has no usable asin or one that was met before."""
    try:
        asin = _text(row["asin"])
        if asin in ("", "nan") or len(asin) > LONGEST_ASIN or asin in products:
            return
        products[asin] = Product(
            asin,
            _text(row.get("name")),
            _text(row.get("full_description")),
            _texts(row.get("small_description")),
            prices(row.get("pricing")),
            _options(row.get("customization_options") or {}),
            _text(row.get("query")).lower().strip(),
            frozenset(part.strip() for part in _text(row.get("product_category")).split("›") if part.strip()),
            _texts(facts.get(asin, {}).get("attributes")) or NO_ATTRIBUTES,
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is not as it must be: {type(error).__name__}: {error}") from None


def _options(listed: dict) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(_text(one["value"]).strip().replace("/", " | ").lower() for one in values)
        for name, values in listed.items()
        if values is not None
    }


def _named(products: dict[str, Product], facts: dict[str, dict]) -> list[Wish]:
    """A wish for each product that has an instruction."""
    said = [(asin, facts[asin]) for asin in products if facts.get(asin, {}).get("instruction")]
    return [Wish(asin, _text(one["instruction"]), _texts(one.get("instruction_attributes"))) for asin, one in said]


def _said(products: dict[str, Product], people: dict[str, Any]) -> list[Wish]:
    """What people wrote of the products, where they name an attribute."""
    found = []
    for asin in products:
        for one in people.get(asin, ()):
            if not isinstance(one, dict) or "instruction" not in one:
                raise ValueError(f"{asin!r} of {HUMAN} has no instruction")
            attributes, options = _texts(one.get("instruction_attributes")), _texts(one.get("instruction_options"))
            if attributes:
                found.append(Wish(asin, _text(one["instruction"]).strip("."), attributes, options))
    return found


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, [value] if isinstance(value, str) else value or ()))


def _text(value: Any) -> str:
    """Halves of characters, which no model could be shown, become question marks."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
