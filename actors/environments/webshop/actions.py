"""What a message asks the shop for."""

from __future__ import annotations

from typing import NamedTuple

from actors.environments import answers

LONGEST = 4000  # characters of a message that are read at all


class Action(NamedTuple):
    """`kind` is search, click or wait; `argument` is in lower case."""

    kind: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.kind}[{self.argument}]" if self.argument else self.kind


WAIT = Action("wait")


def parse(text: str) -> Action | None:
    """The action that follows the last "Action:", or that the whole text is; None where it is none.

    Its argument is what stands between the last bracket that opens and the last one that closes: `(.+)\\[(.+)\\]` on
    one line, as WebShop reads it.
    """
    text = answers.said(text)
    if len(text) > LONGEST:
        return None
    line = text.rpartition("Action:")[2].strip().partition("\n")[0]
    if line == WAIT.kind:
        return WAIT
    end = line.rfind("]")
    begin = line.rfind("[", 0, max(0, end - 1))  # an argument has at least one character
    kind = line[: max(0, begin)]
    return Action(kind, line[begin + 1 : end].lower()) if kind in ("search", "click") else None
