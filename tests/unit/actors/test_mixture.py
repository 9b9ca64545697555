"""Several environments in one run: whose task it is, how often each is played, and where."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice

import pytest

from actors import mixture
from actors.config import DataSettings, MixedEnvironment
from actors.group import GroupWriter
from protocols.turns import MIXED_FROM, Close, Lease

SIGNS = MixedEnvironment(name="signs", feedback="residual", weight=2, data=DataSettings(train_size=5, test_size=3))
COUNTDOWN = MixedEnvironment(name="countdown", data=DataSettings(train_size=4, test_size=2))
BOTH = (SIGNS, COUNTDOWN)


def plays(several, positions: int) -> list[tuple[int, str]]:
    order = mixture.order(several, mixture.tasks(several, "train"), seed=3)
    return [(epoch, task["id"]) for epoch, task in map(order.task, range(positions))]


def test_tasks_of_several_are_told_apart_and_say_where_they_are_from():
    found = mixture.tasks(BOTH, "test")
    assert Counter(task[MIXED_FROM] for task in found) == {"signs": 3, "countdown": 2}
    assert all(task["id"].startswith(f"{task[MIXED_FROM]}/") for task in found)
    assert {mixture.of(BOTH, task).name for task in found} == {"signs", "countdown"}


def test_one_environment_plays_what_it_would_without_a_mixture():
    assert all(MIXED_FROM not in task for task in mixture.tasks([SIGNS], "train"))
    assert mixture.of([SIGNS], {"id": "any"}) is SIGNS


def test_each_environment_is_played_as_often_as_it_weighs_at_any_time():
    labels = [name.partition("/")[0] for _, name in plays(BOTH, 300)]
    for end in range(1, 301):
        assert abs(labels[:end].count("signs") - end * 2 / 3) < 1


def test_a_task_is_played_once_an_epoch_of_its_environment_whatever_the_others_do():
    found = plays(BOTH, 60)
    assert len(set(found)) == 60
    own = [play for play in found if play[1].startswith("countdown/")]
    assert [epoch for epoch, _ in own] == [n // 4 for n in range(20)], "four tasks, each of them once an epoch"
    alone = [play for play in plays([COUNTDOWN], 20)]
    assert [(epoch, name.removeprefix("countdown/")) for epoch, name in own] == alone, "in the order as if alone"


def test_another_seed_is_another_order_and_the_same_seed_the_same():
    assert plays(BOTH, 30) == plays(BOTH, 30)
    other = mixture.order(BOTH, mixture.tasks(BOTH, "train"), seed=4)
    assert [other.task(n)[1]["id"] for n in range(30)] != [name for _, name in plays(BOTH, 30)]


@pytest.mark.parametrize("feedback", [None, "blank"])
def test_each_task_is_played_in_its_own_environment_with_its_own_limits(feedback):
    slow = COUNTDOWN.model_copy(update={"time_limit_s": 77.0})
    pools = mixture.Pools((SIGNS, slow), feedback)

    async def opened() -> dict[str, tuple[str, str]]:
        found = {}
        for task in mixture.tasks((SIGNS, slow), "test"):
            async with pools.of(task).one(task, 0) as playing:
                environment = playing._environment
                found[task[MIXED_FROM]] = type(environment).__name__, environment.feedback
        await pools.close()
        return found

    own = ("residual", "binary") if feedback is None else (feedback, feedback)
    assert asyncio.run(opened()) == {"signs": ("Signs", own[0]), "countdown": ("Countdown", own[1])}
    limits = {task[MIXED_FROM]: pools.of(task)._limit for task in mixture.tasks(BOTH, "test")}
    assert limits == {"signs": 30.0, "countdown": 77.0}


def test_a_group_says_which_environment_it_was_played_in():
    closes: list[Close] = []
    task = next(islice(mixture.tasks(BOTH, "train"), 1))
    writer = GroupWriter(Lease(bytes(16), 1, 0, task, 0), lambda item, lease, spread: closes.append(item))
    writer.close()
    assert closes[0].extra == {MIXED_FROM: "signs", "task": task["id"]}
