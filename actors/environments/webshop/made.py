"""A catalogue that is made: some 300 invented products, so that WebShop can be played without anybody's files.

A product is a brand, a material, a thing and what is special about it. Titles tell one special of three, a search knows
no other: what decides between products of one kind is among their features. Half of the wishes call the thing by
another name, which only its description has.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from actors.environments.webshop.products import Catalogue, Product, Wish

SEED = 1
EACH = 12  # products of a thing
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white", "yellow")
SYLLABLES = "ba bel dor fen gal hol jun kar lim mor nev pol ras sil tor ulm vek wyn yor zan".split()
LETTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Family:
    """Things that are made and sold alike."""

    parts: tuple[str, str]
    materials: tuple[str, ...]
    special: tuple[str, ...]
    sizes: tuple[str, ...]
    things: tuple[tuple[str, str], ...]  # with another name


FAMILIES = (
    Family(
        ("Home", "Textiles"),
        ("cotton", "linen", "wool", "fleece"),
        ("machine washable", "fade proof", "hand woven", "double sided", "quick drying", "lint free"),
        ("twin", "queen", "king"),
        (("blanket", "throw"), ("curtain", "drape"), ("rug", "carpet"), ("pillow", "cushion"), ("quilt", "coverlet")),
    ),
    Family(
        ("Home", "Tableware"),
        ("ceramic", "glass", "bamboo", "enamel"),
        ("dishwasher safe", "chip proof", "lead free", "hand painted", "easy to clean", "heat proof"),
        ("small", "medium", "large"),
        (("mug", "cup"), ("bowl", "basin"), ("tray", "platter"), ("vase", "urn"), ("pitcher", "jug")),
    ),
    Family(
        ("Home", "Furniture"),
        ("oak", "pine", "beech", "rattan"),
        ("easy to assemble", "scratch proof", "space saving", "fully folding", "moisture proof", "hand made"),
        ("12 inch", "18 inch", "24 inch"),
        (("stool", "footrest"), ("shelf", "rack"), ("bench", "settee"), ("desk", "bureau"), ("crate", "chest")),
    ),
    Family(
        ("Clothing", "Outerwear"),
        ("cotton", "wool", "nylon", "corduroy"),
        ("machine washable", "wind proof", "slim fitting", "fully lined", "quick drying", "wrinkle free"),
        ("small", "medium", "large", "x-large"),
        (("jacket", "coat"), ("scarf", "shawl"), ("hat", "cap"), ("apron", "smock"), ("sweater", "jumper")),
    ),
    Family(
        ("Outdoors", "Travel"),
        ("canvas", "nylon", "leather", "hemp"),
        ("water proof", "tear proof", "light weight", "hand stitched", "easy to pack", "odor free"),
        ("10 liter", "20 liter", "40 liter"),
        (("backpack", "rucksack"), ("tent", "shelter"), ("wallet", "billfold"), ("belt", "strap"), ("pouch", "purse")),
    ),
)


def catalogue() -> Catalogue:
    """The same one at each call."""
    draw, products, wishes = Random(SEED), {}, []
    for family in FAMILIES:
        for thing, other in family.things:
            for _ in range(EACH):
                product, wish = _product(draw, family, thing, other)
                products[product.asin] = product
                wishes.append(wish)
    return Catalogue(products, tuple(wishes))


def _product(draw: Random, family: Family, thing: str, other: str) -> tuple[Product, Wish]:
    asin = "B0" + "".join(draw.choices(LETTERS, k=8))
    brand = "".join(draw.sample(SYLLABLES, 2)).capitalize()
    material = draw.choice(family.materials)
    special = draw.sample(family.special, 3)
    colours = tuple(sorted(draw.sample(COLOURS, draw.randint(2, 4))))
    sizes = family.sizes[draw.randint(0, 1) :] if draw.random() < 0.7 else ()
    low = draw.randint(500, 9000) / 100
    prices = (low, round(low * 1.5, 2)) if draw.random() < 0.2 else (low,)
    product = Product(
        asin,
        f"{brand} {material} {thing}, {special[0]}",
        f"This {thing}, or {other}, is made by {brand}, who give their name to nothing that does not last.",
        (f"material: {material}", *special[1:], f"{len(colours)} colors"),
        prices,
        {"color": colours} | ({"size": sizes} if sizes else {}),
        thing,
        frozenset((*family.parts, thing)),
        (material, *special),
    )
    asked = draw.sample(special, 2)
    named = draw.choice((thing, other))
    instruction = f"i am looking for a {named} of {material} that is {asked[0]} and {asked[1]}"
    return product, Wish(asin, instruction, (material, *asked))
