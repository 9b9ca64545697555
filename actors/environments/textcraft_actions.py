"""What a message of `textcraft` asks for; see textcraft.py."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from actors.environments import answers

LONGEST = 4000  # characters of a message that are read at all
COUNTED = re.compile(r"([1-9][0-9]{0,3}) ([a-z0-9 ]{1,60})")


@dataclass(frozen=True, slots=True)
class Action:
    """What a message asks for. `kind` is get, craft, inventory or wait."""

    kind: str
    count: int = 0
    item: str = ""
    using: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        if not self.count:
            return self.kind
        using = ", ".join(f"{count} {item}" for item, count in sorted(self.using.items()))
        return f"{self.kind} {self.count} {self.item}" + (f" using {using}" if using else "")


def parse(text: str) -> Action | None:
    """The action on the last line that begins with "Action:", else the whole text as one; None where it is none."""
    text = answers.said(text)
    if len(text) > LONGEST:
        return None
    lines = re.findall(r"^[ \t]*action:(.*)$", text.lower(), re.MULTILINE)
    words = " ".join((lines[-1] if lines else text.lower()).split()).removesuffix(".")
    if words in ("inventory", "wait"):
        return Action(words)
    kind, _, rest = words.partition(" ")
    what, _, using = rest.partition(" using ")
    parts = [COUNTED.fullmatch(part.strip()) for part in ([what, *using.split(",")] if kind == "craft" else [rest])]
    (count, item), *pairs = [(int(part[1]), part[2]) for part in parts if part] or [(0, "")]
    if kind not in ("get", "craft") or not all(parts):
        return None
    needs: Counter[str] = Counter()
    for number, name in pairs:
        needs[name] += number
    return Action(kind, count, item, needs)
