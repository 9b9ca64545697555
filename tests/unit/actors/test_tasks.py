"""The order of tasks: each once an epoch, another order each epoch, the same for the same seed; level by level."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import CurriculumSettings
from actors.tasks import TaskOrder
from protocols.errors import SettingError

TASKS = [{"id": str(n)} for n in range(20)]
LEVELLED = [{"id": str(n), "level": (0, 2, 5)[n % 3]} for n in range(21)]  # 7 of each; levels may leave gaps
CURRICULUM = CurriculumSettings(threshold=0.5, window=4)


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


# --- curriculum


def levels(order: TaskOrder, positions) -> set[int]:
    return {order.task(position)[1]["level"] for position in positions}


def close(order: TaskOrder, level: int, successes, position: int) -> list[bool]:
    return [order.closed({"id": "x", "level": level}, success, position) for success in successes]


def test_a_level_is_unlocked_at_the_threshold_over_a_full_window_and_not_before():
    order = TaskOrder(LEVELLED, 0, CURRICULUM)
    assert levels(order, range(50)) == {0}
    assert close(order, 0, [1, 0, 0], 10) == [False] * 3, "a window that is not full"
    assert close(order, 0, [0.75, 0, 1], 20) == [False] * 3, "means of 0.4375, 0.1875 and 0.4375"
    assert order.level == 0 and levels(order, range(50)) == {0}


def test_a_level_is_unlocked_by_the_group_that_reaches_the_threshold():
    order = TaskOrder(LEVELLED, 0, CURRICULUM)
    assert close(order, 0, [0, 0, 1, 0.5], 10) == [False] * 4, "a mean of 0.375"
    assert close(order, 0, [0.5], 12) == [True], "a mean of 0.5"
    assert order.level == 2
    assert levels(order, range(12)) == {0} and levels(order, range(12, 40)) == {0, 2}


def test_only_the_newest_level_counts_and_groups_whose_success_is_unknown_do_not():
    order = TaskOrder(LEVELLED, 0, CURRICULUM)
    close(order, 0, [1, 1, 1, 1], 10)
    assert close(order, 0, [1] * 10, 20) == [False] * 10, "of the level below"
    assert close(order, 2, [None] * 10, 20) == [False] * 10
    assert close(order, 2, [1, 1, 1], 20) == [False] * 3, "what the level below did counts no more"
    assert close(order, 2, [1], 20) == [True] and order.level == 5
    assert close(order, 5, [1] * 10, 30) == [False] * 10, "there is no level above"


def test_only_the_newest_level_is_played_where_the_recipe_says_so():
    order = TaskOrder(LEVELLED, 0, CURRICULUM.model_copy(update={"only_newest": True}))
    close(order, 0, [1] * 4, 9)
    close(order, 2, [1] * 4, 30)
    assert [levels(order, stretch) for stretch in (range(9), range(9, 30), range(30, 60))] == [{0}, {2}, {5}]


def test_no_task_comes_twice_in_an_epoch_and_no_epoch_in_two_spans():
    order = TaskOrder(LEVELLED, 3, CURRICULUM)
    order.task(14)  # of an epoch that the next stage will number alike
    close(order, 0, [1] * 4, 10)
    first = order.task(10)
    close(order, 2, [1] * 4, 40)
    plays = [(epoch, task["id"]) for epoch, task in map(order.task, range(120))]
    assert len(set(plays)) == 120 and plays[10] == (first[0], first[1]["id"])
    assert [plays[position][0] for position in (0, 9, 10, 39, 40)] == [0, 1, 2, 4, 5]
    whole = [task for epoch, task in plays[10:24]]
    assert len(set(whole)) == 14, "an epoch of the second stage holds each of its tasks once"


def test_a_resumed_order_maps_positions_to_the_same_tasks_and_counts_on():
    order = TaskOrder(LEVELLED, 3, CURRICULUM)
    close(order, 0, [1] * 4, 10)
    close(order, 2, [0.5, 1, 0.25], 40)
    resumed = TaskOrder(LEVELLED, 3, CURRICULUM, json.loads(json.dumps(order.state)))
    assert [resumed.task(n) for n in range(100)] == [order.task(n) for n in range(100)]
    assert close(resumed, 2, [1], 50) == [True], "the fourth of its window"


def test_a_curriculum_of_one_level_is_no_curriculum():
    tasks = [task | {"level": 3} for task in TASKS]
    order = TaskOrder(tasks, 3, CURRICULUM)
    assert close(order, 3, [1] * 10, 7) == [False] * 10
    assert ids(order, range(60)) == ids(TaskOrder(TASKS, 3), range(60))


@pytest.mark.parametrize("level", [None, -1, "hard"])
def test_a_curriculum_of_tasks_without_levels_is_refused_by_the_name_of_the_setting(level):
    tasks = [*LEVELLED, {"id": "odd"} if level is None else {"id": "odd", "level": level}]
    with pytest.raises(SettingError, match="^curriculum: .*'odd'"):
        TaskOrder(tasks, 0, CURRICULUM)


def test_without_a_curriculum_levels_mean_nothing():
    order = TaskOrder(LEVELLED, 3)
    before = ids(order, range(60))
    assert close(order, 0, [1] * 1000, 10) == [False] * 1000
    assert ids(order, range(60)) == before == ids(TaskOrder([{"id": t["id"]} for t in LEVELLED], 3), range(60))
    assert order.state == {} and order.level is None
