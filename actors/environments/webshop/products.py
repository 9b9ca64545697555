"""What a shop sells, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

UNPRICED = 100.0
NO_ATTRIBUTES = ("DUMMY_ATTR",)


@dataclass(frozen=True)
class Product:
    """`options` are the values of each choice that a buyer has, `parts` those of its category, from wide to narrow."""

    asin: str
    title: str
    description: str = ""
    features: tuple[str, ...] = ()
    prices: tuple[float, ...] = (UNPRICED,)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    query: str = ""
    parts: frozenset[str] = frozenset()
    attributes: tuple[str, ...] = NO_ATTRIBUTES

    @property
    def tag(self) -> str:
        """The price as pages show it: $10.0, or $10.0 to $20.0."""
        return " to ".join(f"${price}" for price in self.prices)

    @cached_property
    def price(self) -> float:
        """The price that counts: between those that are shown, drawn by the asin, so that it is the same everywhere."""
        return Random(self.asin).uniform(min(self.prices), max(self.prices))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `options` are the values that a person names; None: any combination is to be asked for."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Catalogue:
    """Products by their asin, and the wishes about them: as people wrote them (`human`), or made up of the files."""

    products: dict[str, Product]
    wishes: tuple[Wish, ...]
    human: bool = False
