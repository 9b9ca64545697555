"""Sequences and packing: every trained token is counted once, unchanged, wherever it ends up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.batches.batch import prepare
from learner.batches.linearise import linearise
from learner.batches.packing import pack
from learner.batches.rows import fill_rows
from learner.config import LearnerSettings
from learner.objectives import coefficients, make
from learner.sequences import Linearised, Shares, TokenSequence
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


def lines_of(made: Group, worth: np.ndarray, choice: LearnerSettings) -> Linearised:
    return linearise([made], [worth], choice, make(choice.objective))


def ones(made: Group) -> np.ndarray:
    return np.ones(len(made.turns), np.float32)


BRANCHES = group(
    turn(0, -1, [1, 2], [3, 4]),
    turn(1, 0, [5], [6, 7], role=Role.REFLECTION),
    turn(2, 0, [8], [9]),
    turn(3, 2, [], [], role=Role.ERROR),
)


def test_a_branching_group_becomes_its_paths_and_a_shared_turn_counts_once():
    lines = lines_of(BRANCHES, np.arange(4, dtype=np.float32), settings())
    first, second = lines.sequences
    assert first.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert first.role_weights.tolist() == [0, 0, 1, 1, 0, 1, 1]
    assert first.advantages.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert second.tokens.tolist() == [1, 2, 3, 4, 8, 9]
    assert second.role_weights.tolist() == [0, 0, 0, 0, 0, 1]
    assert len({*first.turns, *second.turns} - {-1}) == 3


def test_a_sequence_ends_with_its_last_trained_token():
    lines = lines_of(BRANCHES, ones(BRANCHES), settings(roles={"reflection": 2}))
    (only,) = lines.sequences
    assert only.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert only.role_weights.tolist() == [0, 0, 0, 0, 0, 2, 2]


def test_a_long_sequence_loses_its_end_and_is_counted():
    made = group(turn(0, -1, [1], list(range(2, 12))))
    lines = lines_of(made, ones(made), settings(row_tokens=8, micro_tokens=8))
    assert lines.truncated == 1
    assert lines.sequences[0].tokens.tolist() == list(range(1, 9))


def test_authored_tokens_are_imitated_but_have_no_ratio():
    made = group(turn(0, -1, [1], [2, 3, 4], [np.nan, -0.5, np.nan]))
    (awr,) = lines_of(made, ones(made), settings()).sequences
    assert awr.role_weights.tolist() == [0, 1, 1, 1] and awr.sampled.tolist() == [False, False, True, False]
    (grpo,) = lines_of(made, ones(made), settings(objective={"name": "grpo"})).sequences
    assert grpo.role_weights.tolist() == [0, 0, 1]
    assert np.isfinite(awr.logprobs).all()


def test_the_first_token_of_a_sequence_is_not_trained_for_nothing_predicts_it():
    made = group(turn(0, -1, [], [7, 8]))
    (only,) = lines_of(made, ones(made), settings()).sequences
    assert only.role_weights.tolist() == [0, 1]


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


def test_rows_are_filled_evenly_so_that_the_fullest_one_adds_little_padding():
    rows = fill_rows([4] * 20, 32)
    assert [len(row) for row in rows] == [7, 7, 6], "first-fit alone fills 8, 8, 4"


def sequence(length: int) -> TokenSequence:
    weights = np.ones(length, np.float32)
    weights[0] = 0
    some = np.arange(length)
    turns = np.zeros(length, np.int32)
    return TokenSequence(
        some.astype(np.int32), weights, weights, -weights, weights > 0, turns, turns > 0, turns > 0, weights
    )


def share(weights: np.ndarray) -> Shares:
    return Shares(weights, np.zeros_like(weights))


@given(
    st.lists(st.integers(2, 16), max_size=40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 7, 100]),
    st.booleans(),
)
def test_all_ranks_get_the_same_number_of_micro_batches_and_chunks(lengths, ranks, rows, chunk, packing):
    choice = settings(ranks=ranks, row_tokens=16, micro_tokens=16 * rows, logprob_chunk=chunk, packing=packing)
    sequences = [sequence(length) for length in lengths]
    packed = pack(sequences, [share(made.role_weights) for made in sequences], choice)
    assert len({len(micros) for micros in packed.micros}) == 1
    for together in zip(*packed.micros, strict=True):
        assert len({micro.chunks for micro in together}) == 1
        assert all(micro.tokens.size <= choice.micro_tokens for micro in together)
    everything = [micro for micros in packed.micros for micro in micros]
    assert sum(micro.coefficients.sum() for micro in everything) == sum(length - 1 for length in lengths)
    forwarded = sum(micro.tokens.size for micro in everything) if lengths else 0
    assert packed.tokens == forwarded == packed.padding + sum(lengths)


def test_without_packing_each_row_holds_one_sequence_beside_others_of_like_length():
    lengths = [3, 16, 4, 15, 3, 4]
    choice = settings(row_tokens=16, micro_tokens=32, packing=False)
    sequences = [sequence(length) for length in lengths]
    ((long, short),) = pack(sequences, [share(made.role_weights) for made in sequences], choice).micros
    assert long.tokens.shape == (2, 16) and short.tokens.shape == (4, 4)
    for micro in (long, short):
        assert (micro.positions == np.arange(micro.tokens.shape[1])).all(), "padding goes on with the sequence"
    assert short.tokens.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 0]]


def test_tokens_without_a_gradient_are_not_forwarded():
    sequences = [sequence(8), sequence(8)]
    packed = pack(sequences, [share(sequences[0].role_weights), share(np.zeros(8, np.float32))], settings())
    assert packed.tokens == 8


def test_a_token_is_forwarded_for_the_divergence_alone():
    kl = np.zeros(8, np.float32)
    kl[3] = 0.5
    one = sequence(8)
    ((micro,),) = pack(
        [one, sequence(4)], [Shares(np.zeros(8, np.float32), kl), share(one.role_weights[:4])], settings()
    ).micros
    assert micro.targets.tolist() == [3, 1, 2, 3]
    assert micro.divergences.tolist() == [0.5, 0, 0, 0] and micro.coefficients.tolist() == [0, 1, 1, 1]
    assert micro.sequences.tolist() == [0, 1, 1, 1]


@given(st.lists(st.integers(2, 16), min_size=1, max_size=40), st.integers(1, 3), st.booleans())
def test_a_sequence_is_whole_in_one_micro_batch_under_a_number_of_its_own(lengths, ranks, packing):
    choice = settings(ranks=ranks, row_tokens=16, micro_tokens=32, packing=packing)
    sequences = [sequence(length) for length in lengths]
    packed = pack(sequences, [share(made.role_weights) for made in sequences], choice)
    found = [
        micro.targets[micro.sequences == number].tolist()
        for micros in packed.micros
        for micro in micros
        if micro.coefficients.any()
        for number in range(micro.sequences.max() + 1)
    ]
    assert sorted(found) == sorted(list(range(1, length)) for length in lengths)


TWO_TURNS = group(turn(0, -1, [1], [2, 3, 4, 5]), turn(1, 0, [6], [7]))
AVERAGES = {
    "token": ([0, 0.125, 0.125, 0.125, 0.125, 0, 0.125], [0, 0.125, 0.125, 0.125]),
    "turn": ([0, 1 / 12, 1 / 12, 1 / 12, 1 / 12, 0, 1 / 3], [0, 1 / 9, 1 / 9, 1 / 9]),
    "sequence": ([0, 0.1, 0.1, 0.1, 0.1, 0, 0.1], [0, 1 / 6, 1 / 6, 1 / 6]),
    "constant": ([0, 1 / 128, 1 / 128, 1 / 128, 1 / 128, 0, 1 / 128], [0, 1 / 128, 1 / 128, 1 / 128]),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_the_loss_is_averaged_over_tokens_turns_or_sequences_or_divided_by_a_constant(average):
    made = [TWO_TURNS, group(turn(0, -1, [1], [2, 3, 4]))]
    choice = settings(average=average, credit={"name": "raw"}, objective={"name": "awr", "normalise": False})
    objective = make(choice.objective)
    lines = linearise(made, [np.zeros(2, np.float32), np.zeros(1, np.float32)], choice, objective)
    for found, expected in zip(coefficients(lines.sequences, choice, objective), AVERAGES[average], strict=True):
        np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
        assert not found.kl.any()


def test_a_turn_without_an_advantage_is_not_trained_under_any_objective():
    worth = np.array([np.nan, 1], np.float32)
    for objective in ("awr", "sft", "grpo"):
        (only,) = lines_of(TWO_TURNS, worth, settings(objective={"name": objective})).sequences
        assert only.role_weights.tolist() == [0, 0, 0, 0, 0, 0, 1]
        assert only.advantages.tolist() == [0, 0, 0, 0, 0, 0, 1]
        assert not only.anchored.any()


ANCHORED = group(
    turn(0, -1, [1], [2, 3]),
    turn(1, 0, [4], [5, 6], [np.nan, -1.0]),
    turn(2, 1, [], [7], role=Role.REFLECTION),
    turn(3, 2, [8], [9]),
    turn(4, 1, [], [10], role=Role.REFLECTION),
    turn(5, 4, [], [], role=Role.ERROR, extra={"kind": "too_long"}),
)


def test_sampled_tokens_of_untrained_turns_are_anchored_once_each():
    worth = np.array([np.nan, np.nan, 1, np.nan, 0, 0], np.float32)
    choice = settings(objective={"name": "grpo", "kl": 0.5, "anchor": 2})
    first, second = lines_of(ANCHORED, worth, choice).sequences
    assert first.tokens[first.anchored].tolist() == [2, 3, 6, 9]
    assert first.tokens[first.role_weights > 0].tolist() == [7]
    assert not second.anchored.any() and second.tokens[second.role_weights > 0].tolist() == [10]
    found = coefficients([first, second], choice, make(choice.objective))
    assert found[0].loss.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0]
    assert found[0].kl.tolist() == [0, 1, 1, 0, 0, 1, 0.25, 0, 1]


def reflections_only(batch, _):
    """Each reflection is worth 1, and nothing else is trained."""
    return [np.array([1 if t.role is Role.REFLECTION else np.nan for t in group.turns], np.float32) for group in batch]


OWN = {"name": f"{__name__}:reflections_only"}


def test_an_anchor_does_not_change_what_trained_tokens_weigh():
    found = {}
    for anchor in (0, 1):
        micros = prepare([ANCHORED], 0, settings(objective={"name": "grpo", "anchor": anchor}, credit=OWN)).micros
        ((micro,),) = micros
        trained = micro.coefficients > 0
        found[anchor] = dict(zip(micro.targets[trained].tolist(), micro.coefficients[trained].tolist(), strict=True))
        assert trained.all() == (anchor == 0)
    assert found[0] == found[1] == {7: 0.5, 10: 0.5}


def test_a_sequence_that_is_only_anchored_is_not_one_that_the_mean_is_over():
    choice = settings(objective={"name": "grpo", "anchor": 1}, average="constant")
    objective = make(choice.objective)
    worths = [np.array([np.nan, np.nan, 1, np.nan, 1, 0], np.float32), np.full(2, np.nan, np.float32)]
    lines = linearise([ANCHORED, TWO_TURNS], worths, choice, objective)
    assert len(lines.sequences) == 3
    shares = coefficients(lines.sequences, choice, objective)
    assert {share.loss.max() for share in shares} == {np.float32(1 / 128), 0}
    assert {share.kl.max() for share in shares} == {np.float32(1 / 128), 0}


def test_a_batch_without_a_trained_token_anchors_none():
    worth = np.full(6, np.nan, np.float32)
    choice = settings(objective={"name": "grpo", "anchor": 2})
    lines = lines_of(ANCHORED, worth, choice)
    assert not any(share.kl.any() for share in coefficients(lines.sequences, choice, make(choice.objective)))


def test_the_batch_is_described():
    made = group(
        turn(0, -1, [1], [2, 3], index=0, reward=0.0, extra={"success": False}, versions=((0, 4), (1, 5))),
        turn(1, 0, [], [4], index=1, reward=1.0, role=Role.REFLECTION, versions=((0, 5),)),
        turn(2, 1, [], [5], index=1, reward=1.0, extra={"success": True}, versions=((0, 1_000_006),)),
    )
    found = prepare([made], 6, settings()).report
    assert found.reward == 0.5
    assert found.reward_by_index == found.success_by_index == [0, 1]
    assert found.staleness_counts == {"2": 1} and found.staleness_max == 2
    assert found.sampled_tokens == 4 and found.turns == 3
    assert found.sequences == 1 and found.trained_turns == {"attempt": 2, "reflection": 1}


def test_turns_that_the_loss_does_not_weigh_are_not_counted_as_trained():
    made = group(
        turn(0, -1, [1], [2, 3], reward=0.0),
        turn(1, 0, [4], [5], role=Role.REVISION, reward=1.0),
        turn(2, 1, [], [6], role=Role.RETRY, reward=1.0),
    )
    alone = group(turn(0, -1, [1], [2, 3], reward=0.0))
    found = prepare([made, alone], 0, settings(objective={"name": "sft"}, credit={"name": "raw"})).report
    assert found.sequences == 1 and found.trained_turns == {"retry": 1, "revision": 1}
    assert found.reward == pytest.approx(1 / 3), "a revision is nobody's answer"


def test_a_sequence_too_long_for_a_row_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="does not fit"):
        fill_rows([9], 8)
