"""How many more actors the nodes that there are have room for, and what becomes of those for whom there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.errors import SettingError

LESS_CPU = "a smaller actors.cpus, or a larger actors.count"


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
    """What is free now on each node that is alive."""
    import ray
    from ray._private import state

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [free for node, free in state.available_resources_per_node().items() if node in alive]


def scaled() -> bool:
    """Whether something makes and removes nodes: it names their types. A node that was started by hand, or by the
    command, has a type of its own, made of its id."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name != f"node_{node.node_id}" for node in nodes)


def answer(before: int, count: int, room: float, need: Mapping[str, float], joinable: bool, grows: bool) -> Scaled:
    """What to say to who asks for `count` actors where there is `room`. Nodes that are `joinable` may make more of it,
    and where the cluster `grows` by itself it is asked to. Raises SettingError where nothing could."""
    if count <= max(room, before):
        return Scaled(before)
    each = ", ".join(f"{amount:g} {name}" for name, amount in need.items() if amount)
    said = f"there is room for {room:g} actor{'s' * (room != 1)} of {each} each"
    if not joinable:
        less = "a smaller actors.gpus, so that actors share one" if need.get("GPU") else LESS_CPU
        cure = f"Ask for no more, or resume with {less}"
        raise SettingError("N", f"{count} actors are too many: {said} in the Ray of this run", cure)
    return Scaled(before, f"{said}; the others wait for nodes" + (", which Ray is asked for" if grows else " to join"))
