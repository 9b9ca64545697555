"""An episode that broke off tells nothing of the model: it moves no mean and is not trained. One that grew too long
failed by the model's own words, and counts as wrong."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest

from actors.engines import Completion
from actors.group import GroupWriter
from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.credit_config import (
    CreditSettings,
    GroupCredit,
    RawCredit,
    ReflectionCredit,
    TrajectoryCredit,
    TurnwiseCredit,
)
from learner.credits import credit, left_out
from protocols.turns import TOO_LONG, Group, Lease, Role, Stop, Turn

NONE = math.nan
ACT, REFLECT, RETRY, ERROR = Role.ACTION, Role.REFLECTION, Role.RETRY, Role.ERROR


def turn(number: int, episode: int, reward: float, role: Role = ACT, parent: int = -1, **facts) -> Turn:
    """A turn of two tokens; one of role error has none."""
    response = np.array([3, 4] if role is not ERROR else [], np.int32)
    arrays = (np.array([1, 2], np.int32), response, np.full(len(response), -1, np.float32))
    versions = ((0, 0),) if len(response) else ()
    return Turn(bytes(16), 0, number, parent, *arrays, versions, role, episode, reward=reward, **facts)


def group(*turns: Turn) -> Group:
    return Group(bytes(16), 0, turns)


def broken(number: int, episode: int, parent: int = -1) -> Turn:
    return turn(number, episode, 0.0, ERROR, parent, extra={"error": "it hung", "kind": "hung"})


def too_long(number: int, episode: int, parent: int = -1) -> Turn:
    return turn(number, episode, 0.0, ERROR, parent, extra={"error": "no room", "kind": "too_long"})


def advantages(made: Group, settings: CreditSettings) -> list[float]:
    return [float(value) for value in credit([made], settings)[0]]


@pytest.mark.parametrize("kind", [GroupCredit, TurnwiseCredit, RawCredit])
def test_an_episode_that_grew_too_long_counts_as_the_recipe_says(kind):
    made = group(turn(0, 0, -1.0), turn(1, 1, 0.0), turn(2, 2, 0.5), too_long(3, 2, parent=2))
    broke_off = group(*made.turns[:3], broken(3, 2, parent=2))
    left = advantages(made, kind(too_long="left_out"))
    np.testing.assert_array_equal(left, advantages(broke_off, kind()))
    assert math.isnan(left[2]) and not math.isnan(advantages(made, kind())[2])


@pytest.mark.parametrize("std", [True, False])
def test_the_siblings_of_an_episode_that_broke_off_are_compared_without_it(std):
    made = group(turn(0, 0, -1.0), turn(1, 1, -1.0), turn(2, 2, 0.0), broken(3, 2, parent=2))
    np.testing.assert_array_equal(advantages(made, GroupCredit(std=std)), [0, 0, NONE, 0])
    never_began = group(turn(0, 0, 1.0), turn(1, 1, 1.0), broken(2, 2))
    assert advantages(never_began, GroupCredit(std=std)) == [0, 0, 0]


def test_every_credit_leaves_the_turns_of_an_episode_that_broke_off_untrained():
    made = group(turn(0, 0, 1.0, terminated=True), turn(1, 1, 0.0, terminated=True), turn(2, 2, 0.5), broken(3, 2, 2))
    for settings, kept in (
        (TurnwiseCredit(), [0.5, -0.5]),
        (RawCredit(), [1, 0]),
        (RawCredit(keep="better"), [1, 0]),
        (TrajectoryCredit(), [1, NONE]),
    ):
        np.testing.assert_array_equal(advantages(made, settings), [*kept, NONE, 0], err_msg=settings.name)


def test_a_batch_mean_by_turn_number_has_no_part_of_what_broke_off():
    fine, odd = group(turn(0, 0, 1.0), turn(1, 1, 0.0)), group(turn(0, 0, -9.0), broken(1, 0, 0))
    first, second = credit([fine, odd], TurnwiseCredit(baseline="batch"))
    np.testing.assert_array_equal(first, [0.5, -0.5])
    np.testing.assert_array_equal(second, [NONE, 0])


def test_a_reflection_whose_retry_broke_off_moves_no_other():
    made = group(
        turn(0, 0, 0.0, Role.ATTEMPT),
        turn(1, 0, 1.0, REFLECT, 0, index=1),
        turn(2, 0, 1.0, RETRY, 1, index=1),
        turn(3, 1, 0.0, REFLECT, 0, index=1),
        turn(4, 1, 0.0, RETRY, 3, index=1),
        turn(5, 2, 0.0, REFLECT, 0, index=1),
        broken(6, 2, 5),
    )
    np.testing.assert_allclose(advantages(made, ReflectionCredit(std=False)), [NONE, 0.5, NONE, -0.5, NONE, NONE, 0])


def test_a_turn_that_leads_to_a_whole_end_still_counts_where_another_branch_broke_off():
    shared = group(turn(0, 0, 0.0), turn(1, 0, 0.0, parent=0), broken(2, 0, 1), turn(3, 1, 1.0, parent=0))
    assert left_out(shared.turns) == {1, 2}
    tree = group(
        turn(0, 0, 0.0), turn(1, 0, 1.0, parent=0, terminated=True), turn(2, 0, 0.0, parent=0), broken(3, 0, 2)
    )
    assert left_out(tree.turns) == {2, 3}


def test_an_episode_that_grew_too_long_is_worth_no_more_than_a_wrong_one_nor_than_zero():
    punished = group(turn(0, 0, -1.0), turn(1, 1, 1.0), turn(2, 2, 0.0), too_long(3, 2, 2))
    np.testing.assert_allclose(advantages(punished, GroupCredit(std=False)), [-2 / 3, 4 / 3, -2 / 3, 0])
    right = group(turn(0, 0, 1.0), turn(1, 1, 1.0), turn(2, 2, 0.5), too_long(3, 2, 2))
    np.testing.assert_allclose(advantages(right, GroupCredit(std=False)), [1 / 3, 1 / 3, -2 / 3, 0], rtol=1e-6)


ENDS = {"whole": None, "hung": "hung", "too long": TOO_LONG}


@pytest.mark.parametrize("ends", product(ENDS, repeat=3), ids=" ".join)
@pytest.mark.parametrize("rewards", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -1.0, 0.0), (1.0, 0.0, 1.0)], ids=str)
def test_what_an_actor_calls_flat_is_what_the_credit_of_episodes_calls_flat(ends, rewards):
    said: list = []
    writer = GroupWriter(
        Lease(bytes(16), 0, 0, {"id": "t"}, 0), lambda item, lease, spread: said.append((item, spread))
    )
    sampled = Completion(np.array([3, 4], np.int32), np.full(2, -1, np.float32), ((0, 0),), Stop.END, 0.0)
    for episode, (end, reward) in enumerate(zip(ends, rewards, strict=True)):
        writer.turn(ACT, -1, np.array([1], np.int32), sampled, episode=episode, index=0, reward=reward)
        if (kind := ENDS[end]) is not None:
            writer.error(episode, "it ended", kind)
    writer.close()
    *turns, (_, spread) = said
    worth = advantages(group(*(one for one, _ in turns)), GroupCredit(std=False))
    if set(ends) == {"hung"}:
        assert math.isnan(spread), "replay sets it aside, whatever credit would make of it"
    else:
        assert (spread == 0) == (not np.nan_to_num(worth).any())


def test_a_trajectory_is_worth_the_score_so_far_where_the_environment_tells_one():
    steps = group(
        turn(0, 0, 0.7, extra={"score": 0.7}),
        turn(1, 0, 0.1, parent=0, terminated=True, extra={"score": 0.8}),
        turn(2, 1, 0.3, terminated=True, extra={"score": 0.3}),
    )
    np.testing.assert_allclose(advantages(steps, TrajectoryCredit(above=0.5)), [0.8, 0.8, NONE])


@pytest.mark.parametrize("reward", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "objective"),
    [({"name": "group"}, "grpo"), ({"name": "turnwise", "baseline": "batch"}, "awr"), ({"name": "raw"}, "awr")],
    ids=["group", "turnwise", "raw"],
)
def test_one_reward_that_is_no_number_silences_its_episode_and_nothing_else(name, objective, reward):
    groups = [
        Group(bytes([number] * 16), 0, tuple(turn(n, n, value) for n, value in enumerate(rewards)))
        for number, rewards in enumerate([[0.0, 1.0], [1.0, 0.0], [reward, 1.0, 0.0]])
    ]
    settings = LearnerSettings(credit=name, objective={"name": objective}, row_tokens=64, micro_tokens=64)
    batch = prepare(groups, 0, settings)
    assert sum(batch.report.trained_turns.values()) == 6
    assert batch.report.reward == 0.5
    json.dumps(batch.report.to_json(), allow_nan=False)
