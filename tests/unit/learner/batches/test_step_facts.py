"""What a step reports of the groups that it trained on: rewards are those of the model's own answers."""

from __future__ import annotations

import numpy as np

from learner.batches.batch import prepare, report_of
from learner.config import LearnerSettings
from protocols.turns import Group, Role, Stop, Turn


def group(*turns: tuple) -> Group:
    """Turns as (role, index, after, reward, sampled)."""
    made = []
    for number, (role, index, after, reward, sampled) in enumerate(turns):
        logprob = np.array([-1.0 if sampled else np.nan], np.float32)
        arrays = (np.zeros(0, np.int32), np.ones(1, np.int32), logprob)
        facts = {"index": index, "after": after, "reward": reward, "extra": {"success": reward == 1}}
        made.append(Turn(bytes(16), 1, number, after, *arrays, ((0, 0),), role, **facts))
    return Group(bytes(16), 1, tuple(made))


def test_copies_and_demonstrations_do_not_count_as_answers_of_the_model():
    searched = group(
        (Role.ACTION, 0, -1, 0.0, True),
        (Role.REVISION, 1, 0, 0.0, False),
        (Role.ACTION, 2, 1, 1.0, False),  # copied from a good branch
        (Role.ACTION, 0, -1, 1.0, False),  # of a demonstration
    )
    hinted = group((Role.ATTEMPT, 0, -1, 1.0, True), (Role.RETRY, 1, -1, 1.0, False))
    found = report_of([searched, hinted], 0)
    assert (found.reward, found.reward_by_index, found.success_by_index) == (0.5, [0.5], [0.5])


def test_a_failed_answer_that_the_task_brought_along_keeps_its_turn_number():
    reflected = group(
        (Role.ATTEMPT, 0, -1, 0.0, False), (Role.REFLECTION, 1, 0, 1.0, True), (Role.RETRY, 1, 1, 1.0, True)
    )
    assert report_of([reflected], 0).reward_by_index == [0, 1]


def test_a_group_in_which_nothing_was_sampled_counts_none():
    alone = group((Role.ATTEMPT, 0, -1, 1.0, False), (Role.ACTION, 1, 0, 1.0, False))
    found = report_of([alone], 0)
    assert (found.groups, found.reward, found.reward_by_index) == (1, None, [])


def said(role: Role, tokens: int, stop: Stop, **extra) -> Turn:
    arrays = (np.zeros(0, np.int32), np.ones(tokens, np.int32), np.full(tokens, -1.0, np.float32))
    return Turn(bytes(16), 1, 0, -1, *arrays, ((0, 0),), role, stop=stop, extra=extra)


def test_the_share_of_cut_and_of_unparsed_answers_and_their_lengths_are_told_by_role():
    answers = [
        said(Role.ATTEMPT, 8, Stop.LENGTH, parsed=False),
        said(Role.ATTEMPT, 8, Stop.LENGTH, parsed=False),
        said(Role.ATTEMPT, 2, Stop.END, parsed=True),
        said(Role.ATTEMPT, 4, Stop.END, parsed=False),
        said(Role.REFLECTION, 5, Stop.END, parsed=False),  # of the answer that it led to
    ]
    found = report_of([Group(bytes(16), 1, tuple(answers))], 0)
    assert found.responses.cut_share == {"attempt": 0.5, "reflection": 0.0}
    assert found.responses.unparsed_share == {"attempt": 0.75}
    assert found.responses.response_tokens == {
        "attempt": {"mean": 5.5, "p50": 6.0, "max": 8},
        "reflection": {"mean": 5.0, "p50": 5.0, "max": 5},
    }


def test_an_environment_that_parses_nothing_has_no_share_of_unparsed_answers():
    found = report_of([Group(bytes(16), 1, (said(Role.ACTION, 3, Stop.END),))], 0)
    assert (found.responses.cut_share, found.responses.unparsed_share) == ({"action": 0.0}, {})


def test_what_was_not_sampled_has_no_length():
    authored = group((Role.REVISION, 0, -1, 0.0, False), (Role.ERROR, 0, 0, 0.0, True))
    assert report_of([authored], 0).responses.response_tokens == {}


def test_a_batch_that_trains_nothing_forwards_nothing():
    wrong = group((Role.ATTEMPT, 0, -1, 0.0, True))
    found = prepare([wrong], 0, LearnerSettings(credit={"name": "raw"}, objective={"name": "sft"})).report
    assert (found.sequences, found.tokens, found.padding_share) == (0, 0, None)
