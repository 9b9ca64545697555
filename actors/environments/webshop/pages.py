"""The pages of WebShop as pieces of text, some of which can be clicked.

text         all pieces in a row:     Instruction: [SEP] i need a mug [SEP] Back to Search [SEP] < Prev [SEP] ...
text_rich    one piece a line:        [button] < Prev [button_]
                                        [clicked button] red [clicked button_]        an option that was chosen
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from actors.environments.webshop.products import Product

EACH = 10  # products on a page of results
SEARCH, BACK, NEXT, PREVIOUS, BUY = "Search", "Back to Search", "Next >", "< Prev", "Buy Now"
DETAILS = ("Description", "Features", "Reviews")


class Kind(Enum):
    """What a piece is; all but words can be clicked."""

    WORDS = auto()
    BUTTON = auto()
    OPTION = auto()
    PRODUCT = auto()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buyer is, and what led there. `page` is search, results, item, done, or one of DETAILS in lower case.

    `hits` are the asins that the last search found; `options` are those chosen, as pairs of name and value; `visited`
    are the asins that were looked at since the last visit of the search page.
    """

    page: str = "search"
    hits: tuple[str, ...] = ()
    number: int = 1
    asin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    visited: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Piece:
    """`name` is that of the option whose value this is; `marked` if it was chosen or visited."""

    text: str
    kind: Kind = Kind.WORDS
    name: str = ""
    marked: bool = False


def pieces(place: Place, instruction: str, products: dict[str, Product]) -> list[Piece]:
    """The page at `place`. Pieces without a text are left out."""
    if place.page == "done":
        return [Piece("Thank you for shopping with us!")]
    asked = [Piece("Instruction:"), Piece(instruction)]
    if place.page == "search":
        return [Piece("WebShop"), *asked, _button(SEARCH)]
    shown = _results if place.page == "results" else _item if place.page == "item" else _detail
    return [piece for piece in (*asked, _button(BACK), *shown(place, products)) if piece.text.strip()]


def plain(page: list[Piece]) -> str:
    return " [SEP] ".join(piece.text.strip() for piece in page)


def rich(page: list[Piece]) -> str:
    chosen = [f"You have clicked {piece.text}." for piece in page if piece.kind is Kind.OPTION and piece.marked]
    return "\n".join((*reversed(chosen), *map(_line, page)))


def clickable(page: list[Piece]) -> dict[str, Piece]:
    """What can be clicked, by its text in lower case. An option's value hides a button of the same text, and the value
    of an earlier option."""
    found = sorted((piece for piece in page if piece.kind is not Kind.WORDS), key=lambda p: p.kind is Kind.OPTION)
    return {piece.text.strip().lower(): piece for piece in found}


def clicked(place: Place, piece: Piece) -> Place:
    """Where a click leads."""
    if piece.kind is Kind.PRODUCT:
        return replace(place, page="item", asin=piece.text, options=(), visited=place.visited | {piece.text})
    if piece.kind is Kind.OPTION:
        others = (option for option in place.options if option[0] != piece.name)
        return replace(place, options=(*others, (piece.name, piece.text)))
    if piece.text == BACK:
        return Place()
    if piece.text == BUY:
        return replace(place, page="done")
    if piece.text in DETAILS:
        return replace(place, page=piece.text.lower())
    if place.page == "results":
        return replace(place, number=place.number + (1 if piece.text == NEXT else -1))
    return replace(place, page="results", asin="", options=()) if place.page == "item" else replace(place, page="item")


def _button(text: str) -> Piece:
    return Piece(text, Kind.BUTTON)


def _results(place: Place, products: dict[str, Product]) -> Iterator[Piece]:
    yield Piece(f"Page {place.number} (Total results: {len(place.hits)})")
    if place.number > 1:
        yield _button(PREVIOUS)
    yield _button(NEXT)
    for asin in place.hits[(place.number - 1) * EACH : place.number * EACH]:
        yield Piece(asin, Kind.PRODUCT, marked=asin in place.visited)
        yield Piece(products[asin].title)
        yield Piece(products[asin].tag)


def _item(place: Place, products: dict[str, Product]) -> Iterator[Piece]:
    product = products[place.asin]
    yield _button(PREVIOUS)
    for name, values in product.options.items():
        yield Piece(name)
        yield from (Piece(value, Kind.OPTION, name, (name, value) in place.options) for value in values)
    yield Piece(product.title)
    yield Piece(f"Price: {product.tag}")
    yield Piece("Rating: N.A.")
    yield from map(_button, (*DETAILS, BUY))


def _detail(place: Place, products: dict[str, Product]) -> Iterator[Piece]:
    product = products[place.asin]
    yield _button(PREVIOUS)
    texts = {"description": (product.description,), "features": product.features}
    yield from map(Piece, texts.get(place.page, ()))  # reviews are in none of the files


def _line(piece: Piece) -> str:
    if piece.kind is Kind.WORDS:
        return piece.text
    label = "clicked button" if piece.marked else "button"
    before = {Kind.OPTION: "  ", Kind.PRODUCT: "\n"}.get(piece.kind, "")
    return f"{before}[{label}] {piece.text} [{label}_]"
