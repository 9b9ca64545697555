"""Credit: what each turn of a batch is worth, checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.config import LearnerSettings
from learner.credit_config import GroupCredit, OwnCredit, RawCredit, ReflectionCredit, TrajectoryCredit, TurnwiseCredit
from learner.credits import credit
from protocols.errors import SettingError
from protocols.turns import MIXED_FROM, Group, Role, Stop, Turn

A, F, R, E = Role.ATTEMPT, Role.REFLECTION, Role.RETRY, Role.ERROR
ACT, REV = Role.ACTION, Role.REVISION
NONE = float("nan")


def group(*turns: tuple, parents: list[int] | None = None, lengths: list[int] | None = None) -> Group:
    """Turns as (role, episode, index, reward), each the child of the one before unless `parents` says otherwise. What
    has no child ends its episode."""
    parents = parents or list(range(-1, len(turns) - 1))
    made = []
    for n, (role, episode, index, reward) in enumerate(turns):
        response = np.zeros(lengths[n] if lengths else 0, np.int32)
        arrays = (np.zeros(0, np.int32), response, response.astype(np.float32))
        facts = {"reward": reward, "terminated": n not in parents}
        made.append(Turn(b"g" * 16, 1, n, parents[n], *arrays, (), role, episode, index, **facts))
    return Group(b"g" * 16, 1, tuple(made))


DIALOGUES = [
    group((A, 0, 0, 0.0), (F, 0, 1, 1.0), (A, 0, 1, 1.0)),
    group((A, 0, 0, 1.0), (F, 0, 1, 0.0), (A, 0, 1, 0.0), (A, 1, 0, 0.0)),
]


def test_raw_credit_is_the_reward():
    first, second = credit(DIALOGUES, RawCredit())
    assert first.tolist() == [0, 1, 1] and second.tolist() == [1, 0, 0, 0]
    assert first.dtype == np.float32


def test_turnwise_credit_compares_turns_of_the_same_environment_where_there_are_several():
    easy, hard = ([replace(one, extra={MIXED_FROM: name}) for one in DIALOGUES] for name in ("easy", "hard"))
    richer = [replace(one, turns=tuple(replace(t, reward=t.reward + 5) for t in one.turns)) for one in easy]
    mixed = credit([richer[0], hard[0], hard[1], richer[1]], TurnwiseCredit(baseline="batch"))
    alone = credit(DIALOGUES, TurnwiseCredit(baseline="batch"))
    for found, expected in zip(mixed, (alone[0], alone[0], alone[1], alone[1]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_turnwise_credit_subtracts_the_batch_mean_of_the_same_turn_number():
    first, second = credit(DIALOGUES, TurnwiseCredit(baseline="batch"))
    third = 1 / 3  # mean of the first attempts 0, 1, 0; the second attempts have mean 1/2
    np.testing.assert_allclose(first, [-third, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(second, [1 - third, -0.5, -0.5, -third], rtol=1e-6)


def test_turnwise_credit_within_the_group():
    first, second = credit(DIALOGUES, TurnwiseCredit(baseline="group"))
    assert first.tolist() == [0, 0, 0]
    assert second.tolist() == [0.5, 0, 0, -0.5]


@pytest.mark.parametrize("settings", [TurnwiseCredit(), GroupCredit()], ids=["turnwise", "group"])
def test_a_reflection_is_worth_what_its_attempt_is(settings):
    for values, made in zip(credit(DIALOGUES, settings), DIALOGUES, strict=True):
        for turn in made.turns:
            if turn.role is F:
                assert values[turn.turn] == values[turn.turn + 1]


def test_group_credit_compares_returns_of_episodes_and_does_not_count_reflections_twice():
    made = group((A, 0, 0, 1.0), (F, 0, 1, 1.0), (A, 0, 1, 1.0), (A, 1, 0, 0.0), (A, 2, 0, 1.0))
    (values,) = credit([made], GroupCredit(std=False))  # returns 2, 0, 1
    assert values.tolist() == [1, 1, 1, -1, 0]
    (values,) = credit([made], GroupCredit())
    np.testing.assert_allclose(values, np.array([1, 1, 1, -1, 0]) / np.std([2, 0, 1]), rtol=1e-5)


@pytest.mark.parametrize("std", [True, False])
def test_a_group_of_one_episode_or_without_variance_teaches_nothing(std):
    alone, same = group((A, 0, 0, 1.0)), group((A, 0, 0, 1.0), (A, 1, 0, 1.0))
    for values in credit([alone, same], GroupCredit(std=std)):
        assert not values.any()


FLAT = {
    "group": (GroupCredit(), group(*((A, episode, 0, 0.1) for episode in range(3)))),
    "group without std": (GroupCredit(std=False), group(*((A, episode, 0, 0.7) for episode in range(7)))),
    "leave one out": (GroupCredit(std=False, baseline="leave_one_out"), group(*((A, n, 0, 0.1) for n in range(3)))),
    "returns that add up in other orders": (
        GroupCredit(),
        group(*((A, 0, n, reward) for n, reward in enumerate((0.1, 0.2, 0.3))), *((A, 1, n, 0.2) for n in range(3))),
    ),
    "turnwise": (TurnwiseCredit(), group(*((A, episode, 0, 0.1) for episode in range(3)))),
    "turnwise over the batch": (TurnwiseCredit(baseline="batch"), group(*((A, n, 0, 0.1) for n in range(6)))),
}


@pytest.mark.parametrize(("settings", "made"), FLAT.values(), ids=FLAT.keys())
def test_the_advantages_of_a_flat_group_are_exactly_0(settings, made):
    (values,) = credit([made], settings)
    assert values.tolist() == [0.0] * len(made.turns)


def test_rewards_that_differ_a_little_are_not_flat():
    (values,) = credit([group((A, 0, 0, 1.0), (A, 1, 0, 1.001))], GroupCredit())
    np.testing.assert_allclose(values, [-1, 1], rtol=1e-2)


def test_each_return_is_compared_with_the_mean_of_the_others():
    made = group((A, 0, 0, 1.0), (A, 1, 0, 0.0), (A, 2, 0, 0.5), (A, 3, 0, 0.0))
    (values,) = credit([made], GroupCredit(std=False, baseline="leave_one_out"))
    np.testing.assert_allclose(values, [1 - 0.5 / 3, 0 - 1.5 / 3, 0.5 - 1 / 3, 0 - 1.5 / 3], rtol=1e-6)
    (alone,) = credit([group((A, 0, 0, 1.0))], GroupCredit(std=False, baseline="leave_one_out"))
    assert alone.tolist() == [0.0]


@pytest.mark.parametrize("name", ["group", "turnwise", "raw", f"{__name__}:ones"])
def test_a_truncated_answer_is_left_out_of_the_loss_and_stays_in_the_baselines(name):
    made = group((A, 0, 0, 1.0), (A, 1, 0, 0.0), (A, 2, 0, 0.5))
    cut = Group(made.id, made.lease, (replace(made.turns[0], stop=Stop.LENGTH), *made.turns[1:]))
    plain, masked = (LearnerSettings(credit={"name": name, "mask_truncated": mask}).credit for mask in (False, True))
    (before,), (after,) = credit([cut], plain), credit([cut], masked)
    assert np.isfinite(before).all() and np.isnan(after[0])
    assert after[1:].tolist() == before[1:].tolist()


@pytest.mark.parametrize("settings", [RawCredit(), TurnwiseCredit(), GroupCredit()], ids=["raw", "turnwise", "group"])
def test_an_environment_error_is_worth_nothing(settings):
    (values,) = credit([group((A, 0, 0, 1.0), (E, 1, 0, -5.0), (A, 2, 0, 0.0))], settings)
    assert values[1] == 0
    assert np.isfinite(values).all()


def test_an_error_does_not_move_the_means():
    (values,) = credit([group((A, 0, 0, 1.0), (E, 1, 0, -5.0), (A, 2, 0, 0.0))], TurnwiseCredit())
    assert values.tolist() == [0.5, 0, -0.5]


LONG = group((A, 0, 0, 0.0), (F, 0, 1, 0.5), (A, 0, 1, 0.5), (F, 0, 2, 1.0), (A, 0, 2, 1.0), (A, 0, 3, 1.0))
KEPT = {
    "all": [0, 0.5, 0.5, 1, 1, 1],
    "better": [0, 0.5, 0.5, 1, 1, NONE],
    "best": [NONE, NONE, NONE, 1, 1, NONE],
    "success": [NONE, NONE, NONE, 1, 1, 1],
}


@pytest.mark.parametrize("keep", KEPT)
def test_filters_of_rise_keep_turns_with_their_reflections(keep):
    (values,) = credit([LONG], RawCredit(keep=keep))
    np.testing.assert_array_equal(values, np.array(KEPT[keep], np.float32))


def test_filters_look_at_each_episode_alone():
    made = group((A, 0, 0, 0.0), (A, 0, 1, -1.0), (A, 1, 0, -1.0), (A, 1, 1, -1.0))
    (best,), (better,) = (credit([made], RawCredit(keep=keep)) for keep in ("best", "better"))
    np.testing.assert_array_equal(best, np.array([0, NONE, -1, NONE], np.float32))
    np.testing.assert_array_equal(better, np.array([0, NONE, -1, NONE], np.float32))


def test_a_response_is_punished_from_the_cache_on_and_in_full_at_the_limit():
    lengths = [60, 80, 90, 100, 150]
    made = group(*((A, episode, 0, 0.0) for episode in range(5)), lengths=lengths)
    (values,) = credit([made], GroupCredit(std=False, overlong={"limit": 100, "cache": 20, "penalty": 2.0}))
    returns = np.array([0.0, 0.0, -1.0, -2.0, -2.0])
    np.testing.assert_allclose(values, returns - returns.mean(), rtol=1e-6)


def test_each_response_of_an_episode_is_punished_for_itself():
    made = group((A, 0, 0, 1.0), (F, 0, 1, 1.0), (A, 0, 1, 1.0), (A, 1, 0, 0.0), lengths=[15, 10, 20, 5])
    (values,) = credit([made], GroupCredit(std=False, overlong={"limit": 20, "cache": 10}))
    assert values.tolist() == [0.25, 0.25, 0.25, -0.25]  # returns 2 - 0.5 - 0 - 1, and 0


SHARED = [-1, 0, 1, 0, 3, 0, 5]  # one failed attempt, three reflections with their retries


@pytest.mark.parametrize("std", [True, False])
def test_the_retry_is_credited_to_its_reflection_and_to_nothing_else(std):
    retried = (0, 1.0), (1, 0.0), (2, 0.0)
    pairs = [turn for episode, reward in retried for turn in ((F, episode, 1, reward), (R, episode, 1, reward))]
    made = group((A, 0, 0, -1.0), *pairs, parents=SHARED)
    first, second = credit([made, group((A, 0, 0, 1.0))], ReflectionCredit(std=std))
    deviation = np.std([1, 0, 0]) if std else 1.0
    worth = np.array([2 / 3, -1 / 3, -1 / 3]) / deviation
    np.testing.assert_allclose(first, [NONE, worth[0], NONE, worth[1], NONE, worth[2], NONE], rtol=1e-5)
    assert np.isnan(second).all()


def test_an_episode_without_a_retry_does_not_move_the_mean():
    made = group(
        (A, 0, 0, 0.0), (F, 0, 1, 1.0), (R, 0, 1, 1.0), (F, 1, 1, 0.0), (R, 1, 1, 0.0), (F, 2, 1, 0.0), (E, 2, 1, 0.0),
        parents=SHARED,
    )  # fmt: skip
    (values,) = credit([made], ReflectionCredit(std=False))
    np.testing.assert_array_equal(values, np.array([NONE, 0.5, NONE, -0.5, NONE, NONE, 0], np.float32))


def test_retries_of_several_turns_are_compared_with_those_of_the_same_turn():
    turns = [(F, e, i, r) for e in (0, 1) for i, r in ((1, e), (2, 1.0))]
    made = group(*(two for f in turns for two in (f, (A, *f[1:]))))
    (values,) = credit([made], ReflectionCredit(std=False))
    np.testing.assert_array_equal(values[::2], np.array([-0.5, 0, 0.5, 0], np.float32))
    assert np.isnan(values[1::2]).all()


def test_a_trajectory_is_worth_its_end_and_a_revision_does_not_vouch_for_what_it_revises():
    made = group(
        (ACT, 0, 0, 0.0),  # shared by the good and the bad branch
        (ACT, 0, 1, 0.0),  # bad
        (ACT, 0, 2, 0.0),  # the bad end
        (ACT, 1, 1, 1.0),  # good end
        (REV, 2, 2, 0.0),  # after the bad action
        (ACT, 2, 3, 0.9),  # the good suffix
        parents=[-1, 0, 1, 0, 1, 4],
    )
    (values,) = credit([made], TrajectoryCredit())
    np.testing.assert_array_equal(values, np.array([1, NONE, NONE, 1, 0.9, 0.9], np.float32))
    (values,) = credit([made], TrajectoryCredit(above=0.95))
    np.testing.assert_array_equal(values, np.array([1, NONE, NONE, 1, NONE, NONE], np.float32))


def test_a_prefix_is_trained_only_for_an_end_without_a_revision():
    made = group((ACT, 0, 0, 0.0), (REV, 0, 1, 0.0), (ACT, 0, 2, 1.0))
    (values,) = credit([made], TrajectoryCredit())
    np.testing.assert_array_equal(values, np.array([NONE, 1, 1], np.float32))


def test_of_a_trees_good_ends_the_best_are_trained_and_every_correction_and_demonstration():
    made = group(
        (ACT, 0, 0, 0.0),
        (ACT, 0, 1, 0.8),  # a good end
        (ACT, 1, 1, 1.0),  # the best one
        (ACT, 2, 1, 1.0),  # as good, but later
        (ACT, 3, 1, 0.0),  # bad
        (REV, 4, 2, 0.0),
        (ACT, 4, 3, 1.0),
        (ACT, 5, 0, 1.0),  # a demonstration
        parents=[-1, 0, 0, 0, 0, 4, 5, -1],
    )
    shown = replace(made.turns[-1], extra={"demonstration": True})
    made = replace(made, turns=(*made.turns[:-1], shown))
    (values,) = credit([made], TrajectoryCredit(good=1))
    np.testing.assert_array_equal(values, np.array([1, NONE, 1, NONE, NONE, 1, 1, 1], np.float32))


def test_what_broke_off_before_an_end_is_not_trained_and_takes_no_good_ends_place():
    made = group((ACT, 0, 0, 0.0), (ACT, 0, 1, 2.0), (ACT, 1, 1, 0.5), (ACT, 2, 1, 0.4), parents=[-1, 0, 0, 0])
    off = replace(made, turns=(made.turns[0], replace(made.turns[1], terminated=False), *made.turns[2:]))
    (values,) = credit([off], TrajectoryCredit(good=1))
    np.testing.assert_array_equal(values, np.array([0.5, NONE, 0.5, NONE], np.float32))
    cut = replace(off, turns=(off.turns[0], replace(off.turns[1], truncated=True), *off.turns[2:]))
    (values,) = credit([cut], TrajectoryCredit(good=1))
    np.testing.assert_array_equal(values, np.array([2, 2, NONE, NONE], np.float32))


def test_a_correction_is_whole_although_the_tree_that_it_copies_ended_at_its_depth():
    made = group((ACT, 0, 0, 0.0), (REV, 1, 1, 0.0), (ACT, 1, 2, 0.5))
    made = replace(made, turns=(*made.turns[:-1], replace(made.turns[-1], terminated=False)))
    (values,) = credit([made], TrajectoryCredit())
    np.testing.assert_array_equal(values, np.array([NONE, 0.5, 0.5], np.float32))


def test_good_trajectories_are_above_the_alpha_of_their_search_and_the_settings():
    made = replace(group(*((ACT, n, 0, 0.2 * n) for n in range(1, 5)), parents=[-1] * 4), extra={"alpha": 0.5})
    for above, trained in ((0.0, [False, False, True, True]), (0.7, [False, False, False, True])):
        (values,) = credit([made], TrajectoryCredit(above=above))
        assert (~np.isnan(values)).tolist() == trained


def test_an_episode_that_broke_off_with_an_error_is_not_trained():
    (values,) = credit([group((ACT, 0, 0, 0.0), (E, 0, 1, 1.0))], TrajectoryCredit())
    np.testing.assert_array_equal(values, np.array([NONE, 0], np.float32))


def doubled(batch, settings):
    return [np.array([settings.options["factor"] * turn.reward for turn in group.turns], np.float32) for group in batch]


def double_precision(batch, settings):
    return [np.zeros(len(group.turns)) for group in batch]


def one_short(batch, settings):
    return [np.zeros(len(group.turns) - 1, np.float32) for group in batch]


def one_array(batch, settings):
    return np.zeros(3, np.float32)


def ones(batch, settings):
    return [np.ones(len(group.turns), np.float32) for group in batch]


def infinite(batch, settings):
    return [np.full(len(group.turns), np.inf, np.float32) for group in batch]


def own(function, **options) -> OwnCredit:
    return LearnerSettings(credit={"name": f"{__name__}:{function.__name__}", "options": options}).credit


def test_a_credit_of_ones_own_is_used_with_its_options():
    first, second = credit(DIALOGUES, own(doubled, factor=2))
    assert first.tolist() == [0, 2, 2] and second.tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (double_precision, r"returned float64\[3\]. Return float32\[3\] for a group of 3 turns"),
        (one_short, r"returned float32\[2\]. Return float32\[3\]"),
        (one_array, r"returned float32\[3\]. Return a list of 2 arrays"),
        (infinite, "infinite"),
    ],
)
def test_a_credit_of_ones_own_that_returns_nonsense_is_refused(function, words):
    with pytest.raises(SettingError, match=words) as refused:
        credit(DIALOGUES, own(function))
    assert refused.value.setting == "learner.credit.name"


def test_a_credit_that_is_not_there_is_refused():
    with pytest.raises(SettingError, match="cannot be imported"):
        credit(DIALOGUES, OwnCredit(name="nowhere.at_all:credit"))
