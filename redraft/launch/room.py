"""Whether any node has the GPUs that a run asks for: else Ray would keep its processes waiting without end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from protocols.errors import SettingError
from redraft.control.places import scaled
from redraft.recipe import Recipe

log = logging.getLogger("redraft.launch")
JOIN_S = 60.0  # that nodes of a cluster may take to join, where a script starts them beside the command
LOOK_S = 1.0
SHARES = ((0.5, 0.5), (0.6, 0.4))  # of a GPU for a rank and for an actor; several ranks may not be on one
ONE_GPU = "docs/tutorials/one-gpu.md"


def check(recipe: Recipe, joined: bool, join_s: float = JOIN_S) -> None:
    """Raises SettingError where the GPUs of ranks, and of one actor, are on no nodes of the Ray cluster. Those of one
    that was `joined` may still come for so long; where an autoscaler makes nodes that is only logged."""
    told, deadline = False, time.monotonic() + (join_s if joined else 0.0)
    while (problem := lacking(recipe, gpus_of_nodes())) is not None:
        if scaled():
            log.warning("%s. Ray's autoscaler is asked for them", problem)
            return
        if time.monotonic() >= deadline:
            raise problem
        if not told:
            log.warning("%s. Nodes that join within %g s are waited for", problem, join_s)
            told = True
        time.sleep(LOOK_S)


def gpus_of_nodes() -> list[float]:
    """Of each node that is alive."""
    import ray

    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]


def lacking(recipe: Recipe, nodes: Sequence[float]) -> SettingError | None:
    """What is wrong where not all ranks and one actor find their GPUs on nodes with so many each; None else."""
    learner, actors = recipe.learner, recipe.actors
    ranks = [learner.gpus] * (learner.ranks if recipe.steps and learner.gpus else 0)
    actor = [actors.gpus] if actors.gpus else []
    for setting, demand in (("learner.gpus", ranks), ("actors.gpus", actor)):
        if demand and demand[0] > (most := max(nodes, default=0)):
            there = f"no node has more than {most:g}" if most else "no node has a GPU"
            cure = f"Set it to {most:g}" if most else "Set it to 0 to run on CPUs"
            if setting == "actors.gpus" and most and actors.engine.tensor_parallel > most:
                there, cure = f"{there}: an engine runs on one node", f"{cure}, and actors.engine.tensor_parallel"
            return SettingError(setting, f"{demand[0]:g} is asked for, and {there}", f"{cure}, or join other nodes")
    if not _placed(ranks, nodes):
        problem = (
            f"{learner.ranks} ranks of learner.gpus={learner.gpus:g} do not fit on the {sum(nodes):g} GPUs there are"
        )
        most = max(n for n in range(learner.ranks) if _placed(ranks[:n], nodes))
        return SettingError("learner.ranks", problem, f"Set learner.ranks={most}, or join other nodes")
    if not _placed([*ranks, *actor], nodes):
        problem = f"ranks take so many of the {sum(nodes):g} GPUs that there are that no actor finds {actors.gpus:g}"
        return SettingError("actors.gpus", problem, _shared(recipe, nodes))
    return None


def _shared(recipe: Recipe, nodes: Sequence[float]) -> str:
    """What to set so that ranks and an actor have room, in words of the command line."""
    ranks, actor = recipe.learner.ranks, recipe.actors.gpus
    found = []
    for rank, of_actor in SHARES[ranks > 1 :]:
        if not found and _placed([*[rank] * ranks, of_actor], nodes):
            found.append(f"learner.gpus={rank:g} actors.gpus={of_actor:g}, so that they share one ({ONE_GPU})")
    fewer = (n for n in reversed(range(1, ranks)) if _placed([*[recipe.learner.gpus] * n, actor], nodes))
    found += [f"learner.ranks={n}" for n in [next(fewer, None)] if n is not None]
    return f"Set {' or '.join(found)}" if found else "Join other nodes"


def _placed(demands: Sequence[float], nodes: Sequence[float]) -> bool:
    """Whether these fit, the largest first: whole GPUs of one node, or fractions of one GPU."""
    free = [[1.0] * int(count) for count in nodes]
    for demand in sorted(demands, reverse=True):
        if demand < 1:
            gpus = next((gpus for gpus in free for gpu in gpus if demand <= gpu + 1e-9), None)
            if gpus is None:
                return False
            place = next(n for n, gpu in enumerate(gpus) if demand <= gpu + 1e-9)
            gpus[place] -= demand
            continue
        gpus = next((gpus for gpus in free if sum(gpu == 1.0 for gpu in gpus) >= demand), None)
        if gpus is None:
            return False
        for _ in range(round(demand)):
            gpus.remove(1.0)
    return True
