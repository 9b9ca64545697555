"""Runs a reward function of the user's: the program behind actors/environments/rewards.py.

It hears {"name": FILE.py:Name, "code": sources}, then {"text", "row", "more"}, and answers as actors/answering.py says.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

from actors import answering
from protocols import own_code


def begin(first: dict) -> Callable[[dict], Any]:
    own_code.install(first["code"])
    function = _Function(own_code.load(first["name"]))
    return lambda question: answering.plain(function(**question))


class _Function:
    """The user's function, called with what it takes: the text, columns of the row, and of `more` what it names."""

    def __init__(self, function: Callable):
        if not callable(function):
            raise TypeError(f"{function!r} is no function")
        self._function = function
        found = list(inspect.signature(function).parameters.values())
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not found or found[0].kind not in by_place:
            raise TypeError("it takes no text: write `def score(text, **row)`")
        self._text, self._names = found[0].name, {one.name for one in found[1:]}
        self._any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found)

    def __call__(self, text: str, row: dict, more: dict) -> Any:
        columns = {name: value for name, value in row.items() if self._any or name in self._names}
        columns.pop(self._text, None)
        more = {name: value for name, value in more.items() if name in self._names}
        returned = self._function(text, **(more | columns))
        return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Any) -> Any:
    return await returned


if __name__ == "__main__":
    answering.serve(begin, float(sys.argv[1]))
