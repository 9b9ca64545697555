"""Runs a reward function of the user's: the program behind actors/environments/rewards.py.

It hears {"name": FILE.py:Name, "code": sources} and says `"ready"`, or what went wrong; then {"text", "row", "more"},
and says {"value": ...} or {"raised": ...}. Its parent kills it when it takes too long. Where the parent is gone it ends
by itself, also out of a loop that nothing interrupts: the kernel lets it compute for so many seconds at most.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from protocols import own_code

SHOWN = 80  # characters of a value that is no reward
LOOK_S = 1.0


def main(limit_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the function prints is no answer,
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and what it reads is no question
    first = json.loads(questions.readline())
    try:
        own_code.install(first["code"])
        function = _Function(own_code.load(first["name"]))
    except BaseException as error:
        print(json.dumps(_told(error)), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    for line in questions:
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # SIGPROF kills where nothing handles it
        try:
            answer = {"value": _plain(function(**json.loads(line)))}
        except BaseException as error:
            answer = {"raised": _told(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers)


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


def _plain(value: Any) -> Any:
    """A value as JSON: a number, a map of such, a text, null; anything else as a list with how it looks."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return [f"{repr(value)[:SHOWN]} ({type(value).__name__})"]


def _told(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main(float(sys.argv[1]))
