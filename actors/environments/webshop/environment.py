"""`webshop`: search a shop, choose a product and its options, and buy it (WebShop, arXiv 2207.01206).

    Thought: I look for the kind of thing first.
    Action: search[wool blanket]        on every page
    Action: click[B0XK41ZP7Q]           a product, an option's value or a button of the page that is shown

What is no action, or cannot be clicked on this page, changes nothing and shows the page again; but `wait` is answered
"ok.", as Agent-R has it. A task is a goal (goals.py) with the place of its products: `products` is the folder of the
user's files (files.py), or None for those that are made (made.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from actors.config import DataSettings
from actors.environments.base import TextEnvironment
from actors.environments.webshop import files, made, pages
from actors.environments.webshop.actions import WAIT, Action, parse
from actors.environments.webshop.goals import goals
from actors.environments.webshop.pages import SEARCH, Piece, Place
from actors.environments.webshop.products import Catalogue, Product
from actors.environments.webshop.reward import reward
from actors.environments.webshop.search import Index
from protocols.errors import SettingError

MODES = {"text": pages.plain, "text_rich": pages.rich}
INSTRUCTIONS = """\
Buy in a shop what the instruction asks for. In each message you give one action, after a thought if you like:
Thought: <what you think>
Action: <one action>
The actions are:
search[<words>]
click[<text>] (a product's code, an option's value or a button, as the page shows it)
Choose the options that are asked for before you click[Buy Now], which ends it."""


class Shop(NamedTuple):
    """Products by asin, and what finds them."""

    products: dict[str, Product]
    index: Index


@cache
def catalogue(folder: str | None) -> Catalogue:
    """That of a folder, or the made one. Raises SettingError where the folder's cannot be read."""
    return made.catalogue() if folder is None else files.read(folder)


@cache
def _shop(folder: str | None) -> Shop:
    products = catalogue(folder).products
    return Shop(products, Index(products.values()))


_opening = Lock()


def shop(folder: str | None) -> Shop:
    """The shop of a folder, opened once in a process: whoever comes meanwhile waits."""
    with _opening:
        return _shop(folder)


class Webshop(TextEnvironment):
    """Reward 0 to 1 for what was bought (reward.py), which ends the episode; 1 is success.

    After `steps` actions without a purchase the episode is over with reward 0: `terminated`, the limit is a rule of the
    game. `mode` is the form of pages, text or text_rich; with `list_actions` each page ends with what can be clicked.
    """

    blocking = True  # until a shop is open in this process: the first episodes wait for that in threads
    feedbacks = ("binary",)

    def __init__(self, feedback: str = "binary", steps: int = 100, mode: str = "text", list_actions: bool = False):
        super().__init__(feedback)
        if not isinstance(steps, int) or steps < 1:
            raise SettingError("environment.options.steps", f"must be a whole number of at least 1, got {steps!r}")
        if mode not in MODES:
            raise SettingError("environment.options.mode", f"there is no {mode!r}", f"Use {' or '.join(MODES)}")
        self._limit, self._written, self._lists = steps, MODES[mode], list_actions

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> Sequence[dict]:
        folder = None if data.path is None else str(Path(data.path).resolve())
        return [goal | {"products": folder} for goal in goals(catalogue(folder), split)]

    def start(self, task: dict) -> str:
        self.restore({"task": task, "place": Place(), "steps": 0})
        Webshop.blocking = False
        return f"{INSTRUCTIONS}\n\n{self._shown()}"

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        self._steps += 1
        action = parse(text)
        place = None if action is None else self._after(action)
        if place is not None:
            self._place = place
        bought = self._place.page == "done"
        worth = self._worth() if bought else 0.0
        said = "ok." if action == WAIT else self._shown()
        info = {"success": worth == 1, "answer": action and str(action), "refused": place is None}
        return said, worth, bought or self._steps >= self._limit, False, info

    def snapshot(self) -> dict:
        return {"task": self.task, "place": self._place, "steps": self._steps}

    def restore(self, state: dict) -> None:
        self.task, self._place, self._steps = state["task"], state["place"], state["steps"]
        self._shop = shop(self.task["products"])

    def _page(self) -> list[Piece]:
        return pages.pieces(self._place, self.task["instruction"], self._shop.products)

    def _shown(self) -> str:
        page = self._page()
        said = self._written(page)
        if not self._lists or self._place.page == "done":
            return said
        clicks = (f"click[{text}]" for text in pages.clickable(page) if text != SEARCH.lower())
        return f"{said}\n\nAvailable actions: {', '.join(('search[<words>]', *clicks))}"

    def _worth(self) -> float:
        sold, chosen = self._shop.products, (value for _, value in self._place.options)
        return reward(self.task, sold[self.task["asin"]], sold[self._place.asin], chosen)

    def _after(self, action: Action) -> Place | None:
        """Where an action leads; None where it cannot be done."""
        if action == WAIT:
            return self._place
        if action.kind == "search":
            return Place("results", self._shop.index.find(action.argument), visited=self._place.visited)
        piece = pages.clickable(self._page()).get(action.argument)
        return None if piece is None or piece.text == SEARCH else pages.clicked(self._place, piece)
