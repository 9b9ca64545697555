"""The turns of one episode as a graph, in lines: its roots and branches, what is trained, and why a root is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of turns as transcripts keep them, in their order. One path is one line; anything else is drawn as trees."""
    own = {turn["turn"] for turn in turns}
    above = {turn["turn"]: turn["parent"] if turn["parent"] in own else None for turn in turns}
    below: dict[int | None, list[Mapping[str, Any]]] = {}
    for turn in turns:
        below.setdefault(above[turn["turn"]], []).append(turn)
    roots, forks = below.get(None, []), [found for number, found in below.items() if number is not None]
    branches = sum(len(found) - 1 for found in forks)
    if len(roots) == 1 and not branches:
        return [f"one path: each of its {len(turns)} turns continues the one before"] if len(turns) > 1 else []
    told = f"{len(turns)} turns, {_count(len(roots), 'root')}, {_count(branches, 'branch')}"
    return [f"{told}: what stands below a turn continues its tokens", *_drawn(roots, below, "")]


def _drawn(found: Sequence[Mapping[str, Any]], below: Mapping, indent: str) -> Iterator[str]:
    """A turn, then those that continue it: a path goes straight down, and is indented where it forks."""
    for turn in found:
        yield f"{indent}{_told(turn)}"
        following = below.get(turn["turn"], [])
        yield from _drawn(following, below, indent if len(following) == 1 else indent + "   ")


def _told(turn: Mapping[str, Any]) -> str:
    trained = sum(weight > 0 for weight in turn["weights"] or ())
    why = turn["extra"].get("new_root")
    parts = [
        f"{'o' if turn['parent'] < 0 else '|'} turn {turn['turn']}",
        turn["role"],
        f"reads {len(turn['prompt'])}, writes {len(turn['response'])}, {trained} trained",
        f"reward {turn['reward']}",
        f"a new root: {why}" if why else "",
    ]
    return " · ".join(filter(None, parts))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('ch') else 's'}"
