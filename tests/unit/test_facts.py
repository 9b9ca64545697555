"""What a step reports of the groups that it trained on: rewards are those of the model's own answers."""

from __future__ import annotations

import numpy as np

from learner.batches import facts_of
from protocols.turns import Group, Role, Turn


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
    facts = facts_of([searched, hinted], 0)
    assert (facts["reward"], facts["reward_by_index"], facts["success_by_index"]) == (0.5, [0.5], [0.5])


def test_a_failed_answer_that_the_task_brought_along_keeps_its_turn_number():
    reflected = group(
        (Role.ATTEMPT, 0, -1, 0.0, False), (Role.REFLECTION, 1, 0, 1.0, True), (Role.RETRY, 1, 1, 1.0, True)
    )
    assert facts_of([reflected], 0)["reward_by_index"] == [0, 1]


def test_a_group_in_which_nothing_was_sampled_counts_none():
    alone = group((Role.ATTEMPT, 0, -1, 1.0, False), (Role.ACTION, 1, 0, 1.0, False))
    facts = facts_of([alone], 0)
    assert (facts["groups"], facts["reward"], facts["reward_by_index"]) == (1, 0.0, [])
