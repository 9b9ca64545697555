"""The order of tasks: each once an epoch, another order each epoch, the same for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tasks import TaskOrder

TASKS = [{"id": str(n)} for n in range(20)]


def ids(order: TaskOrder, positions) -> list[str]:
    return [order.task(position)[1]["id"] for position in positions]


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 10**9))
def test_an_epoch_holds_each_task_once(seed, epoch):
    order = TaskOrder(TASKS, seed)
    plays = [order.task(epoch * len(TASKS) + n) for n in range(len(TASKS))]
    assert {number for number, _ in plays} == {epoch}
    assert sorted(task["id"] for _, task in plays) == sorted(task["id"] for task in TASKS)


def test_epochs_and_seeds_differ():
    order = TaskOrder(TASKS, 0)
    epochs = [tuple(ids(order, range(e * 20, e * 20 + 20))) for e in range(5)]
    assert len({*epochs, tuple(ids(TaskOrder(TASKS, 1), range(20)))}) == 6


def test_the_order_does_not_depend_on_how_it_is_asked():
    forward, backward = ids(TaskOrder(TASKS, 3), range(60)), ids(TaskOrder(TASKS, 3), reversed(range(60)))
    assert forward == backward[::-1]


def test_no_tasks_are_refused():
    with pytest.raises(ValueError):
        TaskOrder([], 0)
