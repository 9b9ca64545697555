"""Sequences and packing: every trained token is counted once, unchanged, wherever it ends up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.batches import prepare
from learner.config import LearnerSettings
from learner.objectives import coefficients
from learner.packing import fill_rows, pack
from learner.sequences import TokenSequence, linearise
from protocols.turns import Group, Role, Turn

ID = b"g" * 16


def turn(number: int, parent: int, prompt: list[int], response: list[int], logprobs=None, **fields) -> Turn:
    if logprobs is None:
        logprobs = [-0.1 * token for token in response]
    fields = {"role": Role.ATTEMPT, "versions": ((0, 0),)} | fields
    arrays = (np.array(prompt, np.int32), np.array(response, np.int32), np.array(logprobs, np.float32))
    return Turn(ID, 1, number, parent, *arrays, **fields)


def group(*turns: Turn) -> Group:
    return Group(ID, 1, turns)


def settings(**values) -> LearnerSettings:
    return LearnerSettings(**({"row_tokens": 64, "micro_tokens": 64, "objective": {"name": "awr"}} | values))


def ones(made: Group) -> np.ndarray:
    return np.ones(len(made.turns), np.float32)


BRANCHES = group(
    turn(0, -1, [1, 2], [3, 4]),
    turn(1, 0, [5], [6, 7], role=Role.REFLECTION),
    turn(2, 0, [8], [9]),
    turn(3, 2, [], [], role=Role.ERROR),
)


def test_a_branching_group_becomes_its_paths_and_a_shared_turn_counts_once():
    lines = linearise([BRANCHES], [np.arange(4, dtype=np.float32)], settings())
    first, second = lines.sequences
    assert first.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert first.weights.tolist() == [0, 0, 1, 1, 0, 1, 1]
    assert first.advantages.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert second.tokens.tolist() == [1, 2, 3, 4, 8, 9]
    assert second.weights.tolist() == [0, 0, 0, 0, 0, 1]
    assert len({*first.turns, *second.turns} - {-1}) == 3


def test_a_sequence_ends_with_its_last_trained_token():
    lines = linearise([BRANCHES], [ones(BRANCHES)], settings(roles={"reflection": 2}))
    (only,) = lines.sequences
    assert only.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert only.weights.tolist() == [0, 0, 0, 0, 0, 2, 2]


def test_a_long_sequence_loses_its_end_and_is_counted():
    made = group(turn(0, -1, [1], list(range(2, 12))))
    lines = linearise([made], [ones(made)], settings(row_tokens=8, micro_tokens=8))
    assert lines.truncated == 1
    assert lines.sequences[0].tokens.tolist() == list(range(1, 9))


def test_authored_tokens_are_imitated_but_have_no_ratio():
    made = group(turn(0, -1, [1], [2, 3, 4], [np.nan, -0.5, np.nan]))
    (awr,) = linearise([made], [ones(made)], settings()).sequences
    assert awr.weights.tolist() == [0, 1, 1, 1] and awr.sampled.tolist() == [False, False, True, False]
    (grpo,) = linearise([made], [ones(made)], settings(objective={"name": "grpo"})).sequences
    assert grpo.weights.tolist() == [0, 0, 1]
    assert np.isfinite(awr.logprobs).all()


def test_the_first_token_of_a_sequence_is_not_trained_for_nothing_predicts_it():
    made = group(turn(0, -1, [], [7, 8]))
    (only,) = linearise([made], [ones(made)], settings()).sequences
    assert only.weights.tolist() == [0, 1]


def test_ids_and_logprobs_reach_the_loss_bit_for_bit():
    random = np.random.default_rng(0)
    sent = {}
    groups = []
    for place in range(20):
        response = random.integers(0, 60, 5)
        logprobs = (-random.exponential(size=5)).astype(np.float32)
        reward = float(place + 1)
        sent[reward] = (response.tolist(), logprobs.tobytes())
        groups.append(
            group(turn(0, -1, random.integers(0, 60, 3).tolist(), response.tolist(), logprobs, reward=reward))
        )
    choice = settings(ranks=2, objective={"name": "grpo"}, credit={"name": "raw"}, row_tokens=32, micro_tokens=32)
    batch = prepare(groups, 0, choice)
    got = {}
    for micro in (micro for rank in batch.micros for micro in rank if micro.coefficients.any()):
        for reward in set(micro.advantages.tolist()):
            mine = micro.advantages == reward
            got[reward] = (micro.targets[mine].tolist(), micro.sampler[mine].tobytes())
            flat = micro.tokens.reshape(-1)
            assert flat[micro.picks[mine] + 1].tolist() == micro.targets[mine].tolist()
            assert (np.diff(micro.positions.reshape(-1)[micro.picks[mine]]) == 1).all()
    assert got == sent


@given(st.lists(st.integers(1, 32), max_size=60))
def test_rows_hold_every_sequence_once_and_never_overflow(lengths):
    rows = fill_rows(lengths, 32)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 32 for row in rows)
    full = sum(lengths)
    assert len(rows) <= max(1, 2 * -(-full // 32))


def sequence(length: int) -> TokenSequence:
    weights = np.ones(length, np.float32)
    weights[0] = 0
    some = np.arange(length)
    turns = np.zeros(length, np.int32)
    return TokenSequence(some.astype(np.int32), weights, weights, -weights, weights > 0, turns)


@given(st.lists(st.integers(2, 16), max_size=40), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 7, 100]))
def test_all_ranks_get_the_same_number_of_micro_batches_and_chunks(lengths, ranks, rows, chunk):
    choice = settings(ranks=ranks, row_tokens=16, micro_tokens=16 * rows, logprob_chunk=chunk)
    sequences = [sequence(length) for length in lengths]
    packed = pack(sequences, [made.weights for made in sequences], choice)
    assert len({len(micros) for micros in packed.micros}) == 1
    for together in zip(*packed.micros, strict=True):
        assert len({micro.chunks for micro in together}) == 1
        assert all(micro.tokens.size <= choice.micro_tokens for micro in together)
    everything = [micro for micros in packed.micros for micro in micros]
    assert sum(micro.coefficients.sum() for micro in everything) == sum(length - 1 for length in lengths)
    assert sum(micro.tokens.size for micro in everything) == packed.tokens == packed.padding + sum(lengths)


def test_tokens_without_a_gradient_are_not_forwarded():
    sequences = [sequence(8), sequence(8)]
    packed = pack(sequences, [sequences[0].weights, np.zeros(8, np.float32)], settings())
    assert packed.tokens == 8


def test_turn_average_weighs_a_short_turn_like_a_long_one():
    made = group(turn(0, -1, [1], [2, 3, 4, 5]), turn(1, 0, [6], [7]))
    lines = linearise([made], [np.zeros(2, np.float32)], settings())
    (by_turn,) = coefficients(lines.sequences, lines.turns, settings(average="turn"))
    np.testing.assert_allclose(by_turn, [0, 0.125, 0.125, 0.125, 0.125, 0, 0.5], rtol=1e-6)
    (by_token,) = coefficients(lines.sequences, lines.turns, settings(average="token"))
    np.testing.assert_allclose(by_token, [0, 0.2, 0.2, 0.2, 0.2, 0, 0.2], rtol=1e-6)


def test_the_batch_is_described():
    made = group(
        turn(0, -1, [1], [2, 3], index=0, reward=0.0, extra={"success": False}, versions=((0, 4), (1, 5))),
        turn(1, 0, [], [4], index=1, reward=1.0, role=Role.REFLECTION, versions=((0, 5),)),
        turn(2, 1, [], [5], index=1, reward=1.0, extra={"success": True}, versions=((0, 1_000_006),)),
    )
    facts = prepare([made], 6, settings()).facts
    assert facts["reward"] == 0.5
    assert facts["reward_by_index"] == facts["success_by_index"] == [0, 1]
    assert facts["staleness_counts"] == {"2": 1} and facts["staleness_max"] == 2
    assert facts["sampled_tokens"] == 4 and facts["turns"] == 3


def test_a_sequence_too_long_for_a_row_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="does not fit"):
        fill_rows([9], 8)
