"""How many more actors the nodes that there are have room for, and what becomes of those for whom there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.errors import SettingError


@dataclass(frozen=True, slots=True)
class Scaled:
    """The answer to `redraft scale`: how many actors there should be before, and what to know of the new number."""

    before: int
    note: str = ""


def fitting(need: Mapping[str, float], free: Iterable[Mapping[str, float]]) -> float:
    """How many actors with this need fit on nodes with so much free each; without a need there is no end."""
    wanted = {name: amount for name, amount in need.items() if amount}
    if not wanted:
        return math.inf
    return sum(min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()) for node in free)


def demand(options: Mapping[str, Any]) -> dict[str, float]:
    """What Ray's options ask of a node, by the names that its nodes have for it."""
    return {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}


def free_of_nodes() -> list[dict[str, float]]:
    """What each live node has free now."""
    from ray._private import state

    return list(state.available_resources_per_node().values())


def answer(before: int, count: int, room: float, need: Mapping[str, float], joinable: bool, scaled: bool) -> Scaled:
    """What to say to who asks for `count` actors where there is `room`. Nodes that are `joinable` may make more of it,
    and something that has `scaled` them is asked to. Raises SettingError where nothing could."""
    if count <= max(room, before):
        return Scaled(before)
    each = ", ".join(f"{amount:g} {name}" for name, amount in need.items() if amount)
    said = f"there is room for {room:g} actors of {each} each"
    if not joinable:
        cure = "Ask for no more, or resume with a smaller actors.cpus, or a larger actors.count"
        raise SettingError("N", f"{count} actors are too many: {said} in the Ray of this run", cure)
    return Scaled(before, f"{said}; the others wait for nodes" + (", which Ray is asked for" if scaled else " to join"))
