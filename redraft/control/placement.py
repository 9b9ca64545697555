"""Placement: where Ray puts the learner's ranks. All of them get room at once, before any actor does, or none.

A rank that starts alone holds its GPU and waits for the others; actors that come first may hold what these wait for. So
the ranks' room is reserved as one placement group: on one node where one has room for all, else on as few as can be.
Ranks that share a node are neighbours. A single rank on a CPU needs none of this, and starts as it is. An actor is one
process to Ray, whose GPUs are always those of one node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.config import LearnerSettings
from protocols.errors import DeadlineError
from redraft.control.places import free_of_nodes

LOOK_S = 1.0
TOGETHER_S = 10.0  # that room on one node, which was there a moment ago, is waited for


def gang(settings: LearnerSettings) -> Gang | None:
    """Room for the ranks of the learner; None where nothing can go wrong without."""
    needs = {"CPU": settings.cpus, "GPU": settings.gpus} | settings.resources
    bundle = {name: amount for name, amount in needs.items() if amount}
    if not bundle or (settings.ranks == 1 and not settings.gpus):
        return None
    return Gang([bundle] * settings.ranks)


class Gang:
    """Room for processes that start together. It is reserved from `wait` on until `remove`."""

    def __init__(self, bundles: Sequence[dict[str, float]]):
        self._bundles = list(bundles)
        self._group: PlacementGroup | None = None
        self._strict = False

    def wait(self, limit_s: float, meanwhile: Callable[[str], None]) -> None:
        """Returns when there is room for all, also again when a node that had some is lost: Ray then finds other room.
        Tells `meanwhile` what is missing. Raises DeadlineError saying that."""
        deadline = time.monotonic() + limit_s
        together_until = time.monotonic() + min(TOGETHER_S, limit_s)
        if self._group is None:
            self._strict = any(_holds(node, self._bundles) for node in free_of_nodes())
            self._group = placement_group(self._bundles, strategy="STRICT_PACK" if self._strict else "PACK")
        while not self._group.wait(LOOK_S):
            if self._strict and time.monotonic() > together_until:  # somebody else was faster, or the node is lost
                self._strict = False
                self.remove()
                self._group = placement_group(self._bundles, strategy="PACK")
            meanwhile(lacking(self._bundles, free_of_nodes()))
            if time.monotonic() > deadline:
                missing = lacking(self._bundles, free_of_nodes())
                raise DeadlineError("the controller", "room for the learner's ranks", limit_s, missing)

    def seats(self) -> list[PlacementGroupSchedulingStrategy]:
        """Of each process, in an order in which those of a node follow one another."""
        assert self._group is not None, "`wait` has returned"
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        order = sorted(range(len(self._bundles)), key=lambda index: (nodes[index], index))
        return [PlacementGroupSchedulingStrategy(self._group, index) for index in order]

    def remove(self) -> None:
        """Gives the room back, and ends who still is in it."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def lacking(bundles: Sequence[dict[str, float]], nodes: Sequence[dict[str, float]]) -> str:
    """What there is too little of, in words."""
    short = []
    for name in dict.fromkeys(name for bundle in bundles for name in bundle):
        wanted, free = sum(bundle.get(name, 0.0) for bundle in bundles), sum(node.get(name, 0.0) for node in nodes)
        if wanted > free:
            short.append(f"{wanted:g} {name} for {len(bundles)} ranks, of which {free:g} are free")
    return "; ".join(short) or "free resources are spread over nodes on which no rank fits"


def _holds(node: dict[str, float], bundles: Sequence[dict[str, float]]) -> bool:
    names = {name for bundle in bundles for name in bundle}
    return all(sum(bundle.get(name, 0.0) for bundle in bundles) <= node.get(name, 0.0) + 1e-9 for name in names)
