"""Updates: a batch of several optimizer steps is dealt by whole groups, each minibatch as if it were the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialogues import groups

from learner.batches.batch import prepare
from learner.batches.packing import MicroBatch
from learner.batches.updates import deal
from learner.config import LearnerSettings, UpdateSettings

GROUPS = 7
SEED, STEP = 4, 9


def settings(**values) -> LearnerSettings:
    return LearnerSettings(**({"row_tokens": 32, "micro_tokens": 64, "ranks": 2} | values))


def updates_of(micros: Sequence[Sequence[MicroBatch]]) -> list[list[list[MicroBatch]]]:
    """The micro-batches of each optimizer step, by rank."""
    numbers = sorted({micro.update for rank in micros for micro in rank})
    return [[[micro for micro in rank if micro.update == number] for rank in micros] for number in numbers]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32), st.integers(0, 10**6))
def test_each_epoch_deals_every_group_once_into_parts_of_like_size(count, minibatches, epochs, seed, step):
    choice = UpdateSettings(minibatches=minibatches, epochs=epochs)
    dealt = deal(count, choice, seed=seed, step=step)
    assert len(dealt) == choice.steps and dealt == deal(count, choice, seed=seed, step=step)
    for start in range(0, choice.steps, minibatches):
        epoch = dealt[start : start + minibatches]
        assert sorted(group for part in epoch for group in part) == list(range(count))
        assert max(map(len, epoch)) - min(map(len, epoch)) <= 1


def test_seeds_steps_and_epochs_deal_differently():
    choice = UpdateSettings(minibatches=2, epochs=2)
    dealt = [deal(30, choice, seed=seed, step=step) for seed, step in ((0, 0), (1, 0), (0, 1))]
    parts = [frozenset(part) for each in dealt for part in each]
    assert len(set(parts)) == len(parts)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"average": "sequence", "packing": False},
        {"average": "constant"},
        {"average": "turn", "objective": {"name": "awr"}, "credit": {"name": "turnwise"}},
    ],
)
def test_each_minibatch_is_weighed_and_packed_as_if_it_were_the_batch(choice):
    made, importance = groups(GROUPS), np.linspace(0.5, 2, GROUPS).astype(np.float32)
    several = {"minibatches": 3, "epochs": 2}
    batch = prepare(made, STEP, settings(updates=several, **choice), importance, SEED)
    found = updates_of(batch.micros)
    dealt = deal(GROUPS, UpdateSettings(**several), seed=SEED, step=STEP)
    assert len(found) == len(dealt) == 6
    for micros, chosen in zip(found, dealt, strict=True):
        order = sorted(chosen)
        alone = prepare([made[index] for index in order], STEP, settings(**choice), importance[order]).micros
        assert [len(rank) for rank in micros] == [len(rank) for rank in alone]
        for one, other in zip(sum(micros, []), sum(alone, []), strict=True):
            for name, array in one.arrays().items():
                assert name == "places" or np.array_equal(array, other.arrays()[name]), name
            assert one.chunks == other.chunks
    assert len({len(rank) for rank in batch.micros}) == 1
    assert batch.report.tokens == sum(micro.tokens.size for rank in batch.micros for micro in rank)


def test_a_token_has_the_same_place_in_every_epoch_and_shares_it_with_no_other():
    batch = prepare(groups(GROUPS), STEP, settings(updates={"minibatches": 3, "epochs": 2}), None, SEED)
    epochs: list[dict[int, tuple[int, float]]] = [{}, {}]
    for micro in (micro for rank in batch.micros for micro in rank):
        trained = micro.coefficients > 0
        columns = (micro.places, micro.targets, micro.sampler)
        for place, *token in zip(*(column[trained].tolist() for column in columns), strict=True):
            assert epochs[micro.update // 3].setdefault(place, tuple(token)) == tuple(token)
    assert epochs[0] == epochs[1]
    trained = sum(int((micro.coefficients > 0).sum()) for rank in batch.micros for micro in rank)
    assert trained == 2 * len(epochs[0])


def test_one_optimizer_step_is_the_batch_as_it_came():
    made = groups(GROUPS)
    one, other = (prepare(made, STEP, settings(), None, seed).micros for seed in (0, 1))
    for left, right in zip(sum(one, []), sum(other, []), strict=True):
        assert left.update == right.update == 0
        for name, array in left.arrays().items():
            np.testing.assert_array_equal(array, right.arrays()[name])


def test_what_a_step_reports_and_keeps_is_of_the_batch_however_often_it_is_trained_on():
    made = groups(GROUPS)
    plain, several = (
        prepare(made, STEP, settings(updates=updates), None, SEED) for updates in ({}, {"minibatches": 2, "epochs": 3})
    )
    assert several.report.sequences == plain.report.sequences
    assert several.report.trained_turns == plain.report.trained_turns
    assert several.ids == plain.ids and several.priorities == plain.priorities
