"""Several environments in one run: their tasks beside each other, each under its environment's label, played by weight.

    recipe      environments: [{name: signs, weight: 2}, {name: countdown}]
    tasks       signs/0 signs/1 ... countdown/0 ...       each says where it is from: task[MIXED_FROM]
    order       signs countdown signs | signs countdown signs | ...      each environment in its own order, as if alone
    actor       Pools.of(task)                            a pool of its own for each environment, with its own limits
    groups      facts[MIXED_FROM]                         so that figures of each can be told

A run of one environment is a mixture of one, whose tasks say nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from actors import environments
from actors.config import CurriculumSettings, Feedback, MixedEnvironment
from actors.environment_pool import EnvironmentPool
from actors.environments.base import TextEnvironment
from actors.rollout_base import Rollout
from actors.tasks import Order, TaskOrder
from actors.tools.toolbox import Toolbox
from protocols.turns import MIXED_FROM

Mixture = Sequence[MixedEnvironment]
Make = Callable[[MixedEnvironment], TextEnvironment]


def tasks(mixture: Mixture, split: str) -> Sequence[dict]:
    """The tasks of split "train" or "test". Of several environments each id begins with the label, and the task names
    it. Raises SettingError where an environment has none, or they are not what tasks are."""
    found = [environments.tasks(one, one.data, split) for one in mixture]
    if len(mixture) == 1:
        return found[0]
    return [
        {**task, "id": f"{one.label}/{task['id']}", MIXED_FROM: one.label}
        for one, own in zip(mixture, found, strict=True)
        for task in own
    ]


def of(mixture: Mixture, task: Mapping) -> MixedEnvironment:
    """The environment that a task is played in."""
    if len(mixture) == 1:
        return mixture[0]
    return next(one for one in mixture if one.label == task[MIXED_FROM])


def order(
    mixture: Mixture,
    tasks: Sequence[dict],
    seed: int,
    curriculum: CurriculumSettings | None = None,
    state: dict | None = None,
) -> Order:
    """The order in which tasks, as `tasks` gave them, are played. Raises SettingError as TaskOrder does."""
    if len(mixture) == 1:
        return TaskOrder(tasks, seed, curriculum, state)
    return MixedOrder({one.label: one.weight for one in mixture}, tasks, seed)


class MixedOrder:
    """Position 0, 1, 2, ... -> task: environments take turns by their whole-numbered weights, as evenly as these allow,
    and each goes through its own tasks as a TaskOrder does."""

    level = None
    state: dict = {}

    def __init__(self, weights: Mapping[str, int], tasks: Sequence[dict], seed: int):
        own = {label: [task for task in tasks if task[MIXED_FROM] == label] for label in weights}
        self._orders = {label: TaskOrder(found, seed) for label, found in own.items()}
        self._weights = weights
        self._cycle = _by_turns(weights)
        self._before = [self._cycle[:place].count(label) for place, label in enumerate(self._cycle)]

    def task(self, position: int) -> tuple[int, dict]:
        """(epoch, task) of the `position`-th play; epochs are those of the task's environment."""
        cycles, place = divmod(position, len(self._cycle))
        label = self._cycle[place]
        return self._orders[label].task(cycles * self._weights[label] + self._before[place])

    def closed(self, task: dict, success: float | None, position: int) -> bool:
        """Changes nothing: there are no levels."""
        return False


def _by_turns(weights: Mapping[str, int]) -> list[str]:
    """One cycle, in which each label comes as often as it weighs: always the one that is furthest behind its share."""
    total, behind, cycle = sum(weights.values()), dict.fromkeys(weights, 0), []
    for _ in range(total):
        behind = {label: owed + weights[label] for label, owed in behind.items()}
        label = max(behind, key=behind.__getitem__)
        behind[label] -= total
        cycle.append(label)
    return cycle


class Pools:
    """A pool for each environment of a mixture; `feedback` stands in place of that of all of them. In each no more than
    `most` episodes are played at once."""

    def __init__(
        self,
        mixture: Mixture,
        feedback: Feedback | None = None,
        make: Make = environments.make,
        most: int | None = None,
    ):
        self._mixture = mixture
        changed = {} if feedback is None else {"feedback": feedback}
        self._pools = {one.label: _pool(one.model_copy(update=changed), make, most) for one in mixture}

    def of(self, task: Mapping) -> EnvironmentPool:
        """Where the task is played."""
        return self._pools[of(self._mixture, task).label]

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))


def at_once(one: MixedEnvironment, most: int | None) -> int | None:
    """How many episodes of an environment one actor plays at once, where its rollout can play `most`."""
    return min((limit for limit in (environments.instances(one), most) if limit is not None), default=None)


def groups_at_once(mixture: Mixture, rollout: Rollout, groups: int) -> int:
    """How many groups an actor that may hold `groups` of them plays at once: no more than there are environments and
    programs for, of which a group needs one an episode."""
    limits = [at_once(one, rollout.at_once) for one in mixture]
    if any(limit is None for limit in limits):
        return groups
    return max(1, min(groups, sum(limit // rollout.episodes for limit in limits if limit is not None)))


def _pool(one: MixedEnvironment, make: Make, most: int | None) -> EnvironmentPool:
    limits = one.time_limit_s, environments.threads(one), at_once(one, most), one.recycle_after
    return EnvironmentPool(partial(make, one), *limits, Toolbox(one.tools, one.time_limit_s, one.threads))
