"""Credits that compare: with a whole batch, without bias where episodes stop, from answer to answer, from one state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from learner.config import LearnerSettings
from learner.credit_config import AnchorStateCredit, GroupCredit, ImprovementCredit, TurnwiseCredit
from learner.credits import credit
from protocols.turns import MIXED_FROM, TOO_LONG, Group, Role, Turn

NONE = math.nan


def group(*episodes: list[tuple], role: Role = Role.ATTEMPT, **extra) -> Group:
    """Episodes of answers as (reward, what was heard before it, state that it led to)."""
    turns = []
    for number, answers in enumerate(episodes):
        for index, (reward, heard, state) in enumerate(answers):
            ids = np.array(heard, np.int32), np.ones(2, np.int32), np.full(2, -1.0, np.float32)
            facts = {"reward": reward, "terminated": index + 1 == len(answers)}
            told = {} if state is None else {"state": state}
            parent = len(turns) - 1 if index else -1
            turns.append(
                Turn(bytes(16), 0, len(turns), parent, *ids, ((0, 0),), role, number, index, extra=told, **facts)
            )
    return Group(bytes(16), 0, tuple(turns), extra)


def answers(*rewards: float) -> list[tuple]:
    return [(reward, [index], None) for index, reward in enumerate(rewards)]


def worth(batch: list[Group], settings) -> list[list[float]]:
    return [values.tolist() for values in credit(batch, settings)]


def close(found, wanted) -> bool:
    return all(np.allclose(one, other, atol=1e-5, equal_nan=True) for one, other in zip(found, wanted, strict=True))


def test_returns_are_compared_with_the_whole_batch():
    """REINFORCE++: returns 1, 0, 3 about 4/3, over the root of the mean of 1/9, 16/9 and 25/9."""
    batch = [group(answers(1.0), answers(0.0)), group(answers(1.0, 2.0))]
    spread = math.sqrt(42 / 27)
    wanted = [[-1 / 3 / spread, -4 / 3 / spread], [5 / 3 / spread] * 2]
    assert close(worth(batch, GroupCredit(baseline="batch", std="batch")), wanted)
    assert close(worth(batch, GroupCredit(baseline="batch", std=False)), [[-1 / 3, -4 / 3], [5 / 3] * 2])


def test_the_groups_mean_may_be_taken_off_and_the_batchs_deviation_divide():
    batch = [group(answers(1.0), answers(0.0)), group(answers(4.0), answers(0.0)), group(answers(7.0), answers(7.0))]
    spread = math.sqrt((0.25 * 2 + 4 * 2) / 6)
    wanted = [[0.5 / spread, -0.5 / spread], [2 / spread, -2 / spread], [0.0, 0.0]]
    assert close(worth(batch, GroupCredit(std="batch")), wanted)


def test_a_batch_of_several_environments_is_compared_within_each():
    batch = [
        group(answers(reward), **{MIXED_FROM: place}) for place, reward in (("a", 0), ("b", 5), ("a", 1), ("b", 7))
    ]
    assert worth(batch, GroupCredit(baseline="batch", std=False)) == [[-0.5], [-1.0], [0.5], [1.0]]


def test_a_batch_of_flat_returns_teaches_nothing():
    batch = [group(answers(0.1)) for _ in range(7)]
    assert worth(batch, GroupCredit(baseline="batch", std="batch")) == [[0.0]] * 7


def test_an_episode_alone_may_be_compared_with_the_batch_and_with_no_deviation_of_a_group():
    LearnerSettings(credit=GroupCredit(baseline="batch", std="batch"))
    assert not GroupCredit(baseline="batch", std="batch").facts.compares
    with pytest.raises(ValidationError, match=r"credit.baseline: batch compares nothing .* Set credit.std to batch"):
        GroupCredit(baseline="batch")


@pytest.mark.parametrize("settings", [TurnwiseCredit(baseline="others"), GroupCredit(baseline="batch", std=False)])
def test_groups_of_a_batch_are_not_compared_where_there_is_one(settings):
    with pytest.raises(ValidationError, match="of which there is one. Set batch_groups to 2 or more"):
        LearnerSettings(credit=settings, batch_groups=1)


def slopes(settings: TurnwiseCredit, right: tuple[float, float]) -> np.ndarray:
    """float64[2]: the mean of the gradient estimate in the logit of each turn's chance, over all that can happen in two
    groups of two episodes that stop at their first right answer; exact."""
    plays = [[1.0], [0.0, 1.0], [0.0, 0.0]]
    chances = [right[0], (1 - right[0]) * right[1], (1 - right[0]) * (1 - right[1])]
    slope = np.zeros(2)
    for played in itertools.product(range(3), repeat=4):
        batch = [group(answers(*plays[one]), answers(*plays[two])) for one, two in (played[:2], played[2:])]
        chance = math.prod(chances[one] for one in played)
        for made, values in zip(batch, credit(batch, settings), strict=True):
            for turn, value in zip(made.turns, values, strict=True):
                slope[turn.index] += chance * value * (turn.reward - right[turn.index])
    return slope


def test_only_the_mean_of_other_groups_weighs_turns_as_they_are_worth_where_episodes_stop():
    """The true gradient of a turn's own reward: how many get there, times the slope of its chance in its logit."""
    right = 0.7, 0.4
    true = 4 * np.array([right[0] * (1 - right[0]), (1 - right[0]) * right[1] * (1 - right[1])])
    assert np.allclose(slopes(TurnwiseCredit(baseline="others"), right), true, rtol=1e-5)
    for biased in ("group", "batch"):
        first, second = slopes(TurnwiseCredit(baseline=biased), right) / true
        assert second < 0.75 * first < 0.75, "a late turn counts for less than it is worth, beside an early one"


def test_where_no_other_group_has_such_a_turn_all_their_turns_are_the_baseline():
    batch = [group(answers(0.0, 1.0)), group(answers(0.5)), group(answers(0.25))]
    assert worth(batch, TurnwiseCredit(baseline="others")) == [[-0.375, 0.625], [0.375], [0.0]]


def test_a_bonus_for_what_an_answer_improved_on_the_one_before():
    """Second answers are worth 1 + 2 x 1, 0 - 2 and 1, so about 2/3 they are 7/3, -8/3 and 1/3."""
    batch = [group(answers(0.0, 1.0), answers(1.0, 0.0), answers(1.0, 1.0))]
    (found,) = worth(batch, ImprovementCredit(bonus=2.0, std=False))
    assert np.allclose(found, [-2 / 3, 7 / 3, 1 / 3, -8 / 3, 1 / 3, 1 / 3])
    (scaled,) = worth(batch, ImprovementCredit(bonus=2.0))
    spread = math.sqrt((49 + 64 + 1) / 27)
    assert np.allclose(scaled[1::2], np.array([7, -8, 1]) / 3 / spread, atol=1e-5)


def test_a_verification_is_worth_its_verdict_and_not_the_answer_that_it_judges():
    """Of three episodes of a wrong answer, a verdict and a right one, the second verdict is wrong."""
    turns = []
    for episode, verdict in enumerate((1.0, 0.0, 1.0)):
        for role, index, reward in ((Role.ATTEMPT, 0, 0.0), (Role.VERIFICATION, 0, verdict), (Role.ATTEMPT, 1, 1.0)):
            ids = np.ones(2, np.int32), np.ones(2, np.int32), np.full(2, -1.0, np.float32)
            parent, facts = len(turns) - 1 if turns and turns[-1].episode == episode else -1, {"reward": reward}
            turns.append(Turn(bytes(16), 0, len(turns), parent, *ids, ((0, 0),), role, episode, index, **facts))
    (found,) = worth([Group(bytes(16), 0, tuple(turns))], ImprovementCredit(bonus=2.0, std=False))
    assert np.allclose(found, [0, 1 / 3, 0, 0, -2 / 3, 0, 0, 1 / 3, 0])


def test_while_first_answers_are_held_only_later_ones_are_trained_and_without_the_bonus():
    batch = [group(answers(0.0, 1.0), answers(1.0, 0.0))]
    settings = ImprovementCredit(bonus=2.0, std=False, hold_steps=5)
    assert close(worth(batch, settings.at(4)), [[NONE, 0.5, NONE, -0.5]])
    assert close(worth(batch, settings.at(5)), [[-0.5, 1.5 + 1.0, 0.5, -1.5 - 1.0]])
    assert settings.at(4).holds and not settings.at(5).holds and not ImprovementCredit().at(0).holds


def test_a_reflection_is_worth_what_its_answer_improved_and_what_broke_off_takes_no_part():
    turns = group(answers(0.0, 1.0), answers(0.0, 0.0)).turns
    told = Turn(*(getattr(turns[1], name) for name in Turn.__slots__[:8]), Role.REFLECTION, 0, 1, reward=1.0)
    broken = Turn(*(getattr(turns[3], name) for name in Turn.__slots__[:8]), Role.ERROR, 1, 1, extra={"kind": "hung"})
    (found,) = worth([Group(bytes(16), 0, (*turns, told))], ImprovementCredit(bonus=1.0, std=False))
    assert found == [0.0, 1.0, 0.0, -1.0, 1.0]
    (found,) = worth([Group(bytes(16), 0, (*turns[:3], broken))], ImprovementCredit(bonus=1.0, std=False))
    assert close([found], [[0.0, 0.0, NONE, 0.0]])


def test_steps_from_the_same_state_are_compared_beside_episodes():
    """From the start all three episodes go; x is passed twice, y once. Returns to go, half of what is one step later:
    .5, .25, 0 from the start, 1 and .5 from x, 0 from y, 1 from z."""
    step = Role.ACTION
    made = group(
        [(0.0, [7], "x"), (1.0, [1], "end")],
        [(0.0, [7], "x"), (0.0, [2], "z"), (1.0, [3], "end")],
        [(0.0, [7], "y"), (0.0, [1], "end")],
        role=step,
    )
    settings = AnchorStateCredit(weight=2.0, discount=0.5, std=False)
    episodes = np.array([1 / 3] * 5 + [-2 / 3] * 2)
    states = np.array([0.25, 0.25, 0.0, -0.25, 0.0, -0.25, 0.0])
    assert np.allclose(worth([made], settings)[0], episodes + 2 * states)


def test_a_state_without_a_name_is_what_was_heard():
    """What was heard before the second steps is the same in the first two episodes: 1 and 0 about 1/2."""
    made = group(*([(0.0, [7], None), (reward, [heard], None)] for reward, heard in ((1.0, 1), (0.0, 1), (1.0, 2))))
    found = np.array(worth([made], AnchorStateCredit(discount=1.0, std=False))[0]) - np.array(
        worth([made], GroupCredit(std=False))[0]
    )
    assert np.allclose(found, [1 / 3, 0.5, -2 / 3, -0.5, 1 / 3, 0.0])


def test_episodes_whose_states_nobody_shares_are_worth_what_their_group_says():
    made = group([(0.0, [1], "a"), (1.0, [2], "b")], [(0.0, [3], "c"), (0.0, [4], "d")])
    assert worth([made], AnchorStateCredit()) == worth([made], GroupCredit())


def test_what_grew_too_long_counts_as_wrong_and_what_broke_off_not_at_all():
    turns = group(answers(0.0, 0.0), answers(1.0), answers(0.0)).turns
    ids = (bytes(16), 0, 1, 0, *(np.zeros(0, np.int32),) * 2, np.zeros(0, np.float32), (), Role.ERROR, 0, 1)
    long, broken = (Turn(*ids, extra={"kind": kind}) for kind in (TOO_LONG, "hung"))
    (found,) = worth([Group(bytes(16), 0, (turns[0], long, *turns[2:]))], AnchorStateCredit(std=False))
    assert np.allclose(found, [-2 / 3, 0.0, 4 / 3, -2 / 3])
    (found,) = worth([Group(bytes(16), 0, (turns[0], broken, *turns[2:]))], AnchorStateCredit(std=False))
    assert close([found], [[NONE, 0.0, 1.0, -1.0]])
