"""Credit: what each turn of a batch is worth, checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from learner.config import CreditSettings
from learner.credit import credit
from protocols.turns import Group, Role, Turn

A, F, E = Role.ATTEMPT, Role.REFLECTION, Role.ERROR


def group(*turns: tuple[Role, int, int, float]) -> Group:
    """Turns as (role, episode, index, reward)."""
    empty = np.zeros(0, np.int32)
    made = tuple(
        Turn(b"g" * 16, 1, n, n - 1, empty, empty, empty.astype(np.float32), (), role, episode, index, reward=reward)
        for n, (role, episode, index, reward) in enumerate(turns)
    )
    return Group(b"g" * 16, 1, made)


DIALOGUES = [
    group((A, 0, 0, 0.0), (F, 0, 1, 1.0), (A, 0, 1, 1.0)),
    group((A, 0, 0, 1.0), (F, 0, 1, 0.0), (A, 0, 1, 0.0), (A, 1, 0, 0.0)),
]


def test_raw_credit_is_the_reward():
    first, second = credit(DIALOGUES, CreditSettings(name="raw"))
    assert first.tolist() == [0, 1, 1] and second.tolist() == [1, 0, 0, 0]
    assert first.dtype == np.float32


def test_turnwise_credit_subtracts_the_batch_mean_of_the_same_turn_number():
    first, second = credit(DIALOGUES, CreditSettings(name="turnwise", baseline="batch"))
    third = 1 / 3  # mean of the first attempts 0, 1, 0; the second attempts have mean 1/2
    np.testing.assert_allclose(first, [-third, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(second, [1 - third, -0.5, -0.5, -third], rtol=1e-6)


def test_turnwise_credit_within_the_group():
    first, second = credit(DIALOGUES, CreditSettings(name="turnwise", baseline="group"))
    assert first.tolist() == [0, 0, 0]
    assert second.tolist() == [0.5, 0, 0, -0.5]


@pytest.mark.parametrize("name", ["turnwise", "group"])
def test_a_reflection_is_worth_what_its_attempt_is(name):
    for values, made in zip(credit(DIALOGUES, CreditSettings(name=name)), DIALOGUES, strict=True):
        for turn in made.turns:
            if turn.role is F:
                assert values[turn.turn] == values[turn.turn + 1]


def test_group_credit_compares_returns_of_episodes_and_does_not_count_reflections_twice():
    made = group((A, 0, 0, 1.0), (F, 0, 1, 1.0), (A, 0, 1, 1.0), (A, 1, 0, 0.0), (A, 2, 0, 1.0))
    (values,) = credit([made], CreditSettings(name="group", std=False))  # returns 2, 0, 1
    assert values.tolist() == [1, 1, 1, -1, 0]
    (values,) = credit([made], CreditSettings(name="group"))
    np.testing.assert_allclose(values, np.array([1, 1, 1, -1, 0]) / np.std([2, 0, 1]), rtol=1e-5)


@pytest.mark.parametrize("std", [True, False])
def test_a_group_of_one_episode_or_without_variance_teaches_nothing(std):
    alone, same = group((A, 0, 0, 1.0)), group((A, 0, 0, 1.0), (A, 1, 0, 1.0))
    for values in credit([alone, same], CreditSettings(name="group", std=std)):
        assert not values.any()


@pytest.mark.parametrize("name", ["raw", "turnwise", "group"])
def test_an_environment_error_is_worth_nothing(name):
    (values,) = credit([group((A, 0, 0, 1.0), (E, 0, 1, -5.0), (A, 1, 0, 0.0))], CreditSettings(name=name))
    assert values[1] == 0
    assert np.isfinite(values).all()


def test_an_error_does_not_move_the_means():
    (values,) = credit([group((A, 0, 0, 1.0), (E, 0, 0, -5.0), (A, 1, 0, 0.0))], CreditSettings(name="turnwise"))
    assert values.tolist() == [0.5, 0, -0.5]
