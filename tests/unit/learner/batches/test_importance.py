"""Importance: a group's part of the loss is scaled as the sampler asks; priorities are what advantages say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.dialogues import groups

from learner.batches.batch import Batch, prepare
from learner.config import LearnerSettings
from learner.credits import credit
from protocols.turns import Role

GROUPS = 5
OBJECTIVES = [
    {"objective": {"name": "grpo"}},
    {"objective": {"name": "grpo"}, "average": "turn"},
    {"objective": {"name": "awr"}, "credit": {"name": "turnwise"}},
    {"objective": {"name": "awr", "normalise": False}, "credit": {"name": "raw"}},
    {"objective": {"name": "sft"}, "credit": {"name": "raw"}, "average": "turn"},
]


def settings(**values) -> LearnerSettings:
    return LearnerSettings(**({"row_tokens": 32, "micro_tokens": 64, "ranks": 2} | values))


def tokens_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The trained tokens of a batch and their coefficients, over all ranks and micro-batches in order."""
    micros = [micro for rank in batch.micros for micro in rank if micro.coefficients.any()]
    return (np.concatenate([getattr(micro, name) for micro in micros]) for name in ("targets", "coefficients"))


@pytest.mark.parametrize("choice", OBJECTIVES)
def test_each_token_of_a_group_is_scaled_by_its_importance_and_nothing_else_changes(choice):
    made, importance = groups(GROUPS), np.array([1.0, 0.25, 0.5, 0.125, 0.75], np.float32)
    plain, scaled = (prepare(made, 0, settings(**choice), given) for given in (None, importance))
    targets, before = tokens_of(plain)
    same, after = tokens_of(scaled)
    np.testing.assert_array_equal(same, targets)
    assert set(targets // 100) == set(range(GROUPS)), "every group is trained"
    np.testing.assert_allclose(after, before * importance[targets // 100], rtol=1e-6)
    assert after.dtype == np.float32
    assert scaled.priorities == plain.priorities and scaled.ids == plain.ids


def test_what_holds_a_group_to_the_start_model_is_scaled_too():
    made, importance = groups(GROUPS), np.array([1.0, 0.25, 0.5, 0.125, 0.75], np.float32)
    made = [replace(one, turns=tuple(replace(t, role=Role(t.index)) for t in one.turns)) for one in made]
    choice = settings(objective={"name": "grpo", "kl": 0.5, "anchor": 2}, roles={"attempt": 1})
    plain, scaled = (prepare(made, 0, choice, given).micros for given in (None, importance))
    for before, after in zip(sum(plain, []), sum(scaled, []), strict=True):
        factor = importance[before.targets // 100]
        np.testing.assert_allclose(after.divergences, before.divergences * factor, rtol=1e-6)
        np.testing.assert_allclose(
            before.divergences[before.coefficients > 0], 0.5 * before.coefficients[before.coefficients > 0], rtol=1e-6
        )
    assert {True, False} == set((before.coefficients > 0).tolist())


@pytest.mark.parametrize("choice", OBJECTIVES)
def test_an_importance_of_one_changes_no_bit(choice):
    given = (None, np.ones(GROUPS, np.float32))
    (_, before), (_, after) = (tokens_of(prepare(groups(GROUPS), 0, settings(**choice), ones)) for ones in given)
    assert before.tobytes() == after.tobytes()


def test_a_group_without_importance_is_not_forwarded():
    importance = np.ones(GROUPS, np.float32)
    importance[2] = 0.0
    batch = prepare(groups(GROUPS), 0, settings(), importance)
    forwarded = {token // 100 for rank in batch.micros for micro in rank for token in micro.tokens.ravel()}
    assert forwarded | {0} == {0, 1, 3, 4}, "padding is token 0"
    assert len(batch.ids) == GROUPS, "it is committed all the same"


@pytest.mark.parametrize("name", ["raw", "turnwise", "group"])
def test_a_priority_is_the_mean_size_of_the_advantages_of_the_turns(name):
    made, choice = groups(GROUPS), settings(credit={"name": name})
    expected = [np.mean([abs(value) for value in values]) for values in credit(made, choice.credit)]
    for importance in (None, np.full(GROUPS, 0.5, np.float32)):
        priorities = prepare(made, 0, choice, importance).priorities
        np.testing.assert_allclose(priorities, expected, rtol=1e-6)
        assert all(type(priority) is float for priority in priorities)
    assert len(set(priorities)) == GROUPS


def test_a_turn_that_is_not_trained_has_no_priority():
    made = groups(GROUPS)[:2]
    (every, _), (successes, _) = (
        prepare(made, 0, settings(credit={"name": "raw", "keep": keep})).priorities for keep in ("all", "best")
    )
    best = [max(turn.reward for turn in made[0].turns if turn.episode == episode) for episode in range(3)]
    assert successes == pytest.approx(sum(best) / 6) and successes < every


def test_a_flat_group_has_no_priority_and_neither_has_an_episode_that_broke_off():
    good = groups(GROUPS)[0]
    flat = replace(good, turns=tuple(replace(turn, reward=1.0) for turn in good.turns))
    nothing = {"prompt": np.zeros(0, np.int32), "response": np.zeros(0, np.int32), "logprobs": np.zeros(0, np.float32)}
    errors = [replace(good.turns[0], turn=n, role=Role.ERROR, versions=(), **nothing) for n in (6, 7)]
    failed = replace(good, turns=(*good.turns, *errors))
    assert prepare([flat, good], 0, settings()).priorities[0] == 0.0
    less = prepare([good, failed], 0, settings(credit={"name": "raw"})).priorities[1]
    kept = [abs(turn.reward) for turn in good.turns if turn.episode != good.turns[0].episode]
    assert less == pytest.approx(sum(kept) / 8)
