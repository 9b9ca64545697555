"""What a program does that actors/environments/killable.py runs: it says that it is ready, and answers lines.

It hears a first line of JSON and says `"ready"`, or what went wrong; then to each line {"value": ...} or {"raised":
...}. Its parent kills it when it takes too long. Where the parent is gone it ends by itself, also out of a loop that
nothing interrupts: the kernel lets it compute for so many seconds at most.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

LOOK_S = 1.0
SHOWN = 80  # characters of a value that is neither
LONGEST = 300  # characters of what is told of an error


def serve(begin: Callable[[Any], Callable[[Any], Any]], limit_s: float) -> None:
    """`begin` is told the first line and returns what answers the others; `limit_s` is the most computing of one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what is printed is no answer,
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and what is read is no question
    try:
        answer = begin(json.loads(questions.readline()))
    except BaseException as error:
        print(json.dumps(told(error)), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    for line in questions:
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # SIGPROF kills where nothing handles it
        try:
            said = json.dumps({"value": answer(json.loads(line))})
        except BaseException as error:
            said = json.dumps({"raised": told(error)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(said, file=answers)


def told(error: BaseException) -> str:
    """An error in one line."""
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST else said[:LONGEST] + "..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def plain(value: Any) -> Any:
    """A value as JSON: a number, a map of such, a text, null; anything else as a list with how it looks."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return [f"{repr(value)[:SHOWN]} ({type(value).__name__})"]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)
