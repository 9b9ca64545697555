"""Credit attributing (ADCA-GRPO): the outcome, and which steps were good, checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.credit_config import AttributingCredit, DecaySettings, GroupCredit
from learner.credits import credit
from protocols.turns import TOO_LONG, Group, Role, Stop, Turn

NONE = np.zeros(0, np.int32)
SPREAD = math.sqrt(0.04 * 8 / 9 + 1e-8)  # of UNEVEN, each episode weighing the same


def group(*episodes: tuple[float, str]) -> Group:
    """Episodes as (reward at the end, flags): G good, B bad, a dot for none; a step each."""
    turns = []
    for episode, (reward, flags) in enumerate(episodes):
        for index, flag in enumerate(flags):
            extra = {} if flag == "." else {"good": flag == "G"}
            last = index + 1 == len(flags)
            facts = {"reward": reward * last, "terminated": last, "extra": extra}
            ids = np.ones(2, np.int32), np.ones(3, np.int32), np.full(3, -1.0, np.float32)
            number, parent = len(turns), len(turns) - 1 if index else -1
            turns.append(Turn(bytes(16), 0, number, parent, *ids, ((0, 0),), Role.ACTION, episode, index, **facts))
    return Group(bytes(16), 0, tuple(turns))


UNEVEN = group((1.0, "G"), (0.0, "GBB"))
"""mu = (1 - 1/3) / 2 = 1/3 in units of a flag; squares around it 4/9 and (4 + 16 + 16) / 27, so 8/9 in the mean."""
MANY = [
    UNEVEN,
    group((1.0, "GGB.G"), (0.0, "B"), (0.5, "BG"), (1.0, "...")),
    group((0.0, "GB"), (0.0, "BBBB")),
    group((0.3, "G"), (0.7, "GBGBGBG"), (0.1, "BB")),
]


def worth(one: Group, **settings) -> list[float]:
    (found,) = credit([one], AttributingCredit(**settings))
    return found.tolist()


def test_with_alpha_0_it_is_group_relative_credit_bit_for_bit():
    for plain, attributed in zip(credit(MANY, GroupCredit()), credit(MANY, AttributingCredit(alpha=0)), strict=True):
        assert plain.tobytes() == attributed.tobytes()


@pytest.mark.parametrize("settings", [{}, {"pool": True}, {"alpha": 1.0}])
@pytest.mark.parametrize("flag", "GB")
def test_flags_that_are_all_the_same_say_nothing(flag, settings):
    same = group(*((reward, flag * steps) for reward, steps in ((1.0, 3), (0.0, 7), (0.3, 1))))
    (plain,) = credit([same], GroupCredit())
    assert worth(same, **settings) == plain.tolist()


def test_the_sum_over_the_steps_to_come_of_what_each_is_worth():
    first, bad = 0.2 * 2 / 3 / SPREAD, -0.2 * 4 / 3 / SPREAD
    outcome = 0.5 / (0.5 + 1e-6)
    expected = [
        0.1 * first + outcome,
        0.1 * (first + 2 * bad) - outcome,
        0.1 * 2 * bad - outcome,
        0.1 * bad - outcome,
    ]
    np.testing.assert_allclose(worth(UNEVEN), expected, rtol=1e-6)


def test_pooled_each_step_weighs_the_same():
    spread = math.sqrt(0.04 + 1e-8)  # mu is 0: two good, two bad
    outcome, good = 0.5 / (0.5 + 1e-6), 0.2 / spread
    expected = [0.1 * good + outcome, -0.1 * good - outcome, -0.2 * good - outcome, -0.1 * good - outcome]
    np.testing.assert_allclose(worth(UNEVEN, pool=True), expected, rtol=1e-6)


def test_the_outcome_may_be_added_at_each_step_or_not_at_all():
    first, bad = 0.2 * 2 / 3 / SPREAD, -0.2 * 4 / 3 / SPREAD
    outcome = 0.5 / (0.5 + 1e-6)
    everywhere = [
        0.1 * first + outcome,
        0.1 * (first + 2 * bad) - 3 * outcome,
        0.1 * 2 * bad - 2 * outcome,
        0.1 * bad - outcome,
    ]
    np.testing.assert_allclose(worth(UNEVEN, distribution="all_steps"), everywhere, rtol=1e-6)
    np.testing.assert_allclose(
        worth(UNEVEN, distribution="only_prm"), [first, first + 2 * bad, 2 * bad, bad], rtol=1e-6
    )


def test_long_episodes_may_weigh_less_by_the_root_of_their_length():
    plain = np.array(worth(UNEVEN))
    np.testing.assert_allclose(worth(UNEVEN, shorten=True), plain / np.sqrt([1, 3, 3, 3]), rtol=1e-6)


def test_allocation_shares_the_sign_of_the_outcome_among_steps():
    shares = [1.0, -0.2 / 2.2, -1 / 2.2, -1 / 2.2]  # failed: bad agrees with that and weighs 1, good 0.2
    center = (1.0 - 1 / 3) / 2
    around = np.array(shares) - center
    spread = math.sqrt((around[0] ** 2 + (around[1:] ** 2).mean()) / 2 + 1e-8)
    s = around / spread
    found = worth(UNEVEN, scheme="allocation", distribution="only_prm")
    np.testing.assert_allclose(found, [s[0], s[1:].sum(), s[2:].sum(), s[3]], rtol=1e-6)


def test_a_step_without_a_flag_counts_as_its_episode_ended():
    assert worth(group((1.0, ".."), (0.2, ".B"))) == worth(group((1.0, "GG"), (0.2, "BB")))


def test_a_reflection_is_part_of_the_answer_that_it_leads_to():
    one = group((1.0, "GB"), (0.0, "B"))
    first, second, other = one.turns
    reflection = Turn(bytes(16), 0, 3, 0, NONE, NONE, NONE.astype(np.float32), (), Role.REFLECTION, 0, 1)
    found = worth(Group(bytes(16), 0, (first, second, other, reflection)))
    assert found[:3] == worth(one) and found[3] == found[1]


def test_what_broke_off_takes_no_part_and_what_grew_too_long_counts_as_wrong():
    one = group((1.0, "GB"), (0.0, "B"), (0.0, "G"))
    error = {"kind": "raised", "error": "it broke"}
    turns = [*one.turns[:3], Turn(bytes(16), 0, 3, -1, NONE, NONE, NONE.astype(np.float32), (), Role.ACTION, 2, 0)]
    end = Turn(bytes(16), 0, 4, 3, NONE, NONE, NONE.astype(np.float32), (), Role.ERROR, 2, extra=error)
    found = worth(Group(bytes(16), 0, (*turns, end)))
    assert found[:3] == worth(Group(bytes(16), 0, one.turns[:3])) and math.isnan(found[3])
    long = Turn(bytes(16), 0, 4, 3, NONE, NONE, NONE.astype(np.float32), (), Role.ERROR, 2, extra={"kind": TOO_LONG})
    found = worth(Group(bytes(16), 0, (*one.turns, long)))
    assert found[:4] == worth(one) and found[4] == 0


def test_alpha_falls_by_half_a_cosine_and_the_method_ends():
    settings = AttributingCredit(alpha=0.2, decay=DecaySettings(to=0.1, steps=10), steps=20)
    assert [round(settings.at(step).alpha, 6) for step in (0, 5, 10, 15)] == [0.2, 0.15, 0.1, 0.1]
    assert settings.at(20) == GroupCredit()
    ends = AttributingCredit(steps=20, too_long="left_out", mask_truncated=True)
    assert ends.at(20) == GroupCredit(too_long="left_out", mask_truncated=True)


def test_a_batch_is_worth_what_the_settings_of_its_step_say():
    settings = LearnerSettings(credit=AttributingCredit(alpha=1.0, steps=3), batch_groups=2)
    before, after = (_advantages(prepare([UNEVEN], step, settings)) for step in (2, 3))
    np.testing.assert_allclose(sorted(set(before)), sorted(worth(UNEVEN, alpha=1.0)), rtol=1e-6)
    assert set(after) == set(credit([UNEVEN], GroupCredit())[0])


def _advantages(batch) -> np.ndarray:
    return np.concatenate([micro.advantages for rank in batch.micros for micro in rank])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"distribution": "only_prm", "alpha": 0.3}, "do nothing"),
        ({"distribution": "only_prm", "decay": {}}, "do nothing"),
        ({"decay": {"to": 0.1}}, "Lower it"),
    ],
)
def test_settings_without_effect_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        AttributingCredit(**settings)


def test_answers_that_were_cut_can_be_left_out():
    cut = group((1.0, "G"), (0.0, "B"))
    turns = tuple(
        Turn(**{name: getattr(turn, name) for name in turn.__slots__} | {"stop": Stop.LENGTH}) for turn in cut.turns
    )
    assert all(map(math.isnan, worth(Group(bytes(16), 0, turns), mask_truncated=True)))
