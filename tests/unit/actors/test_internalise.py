"""An answer that a retry made right is written a second time on the question alone, is worth its reward whatever is
compared, and is learned by cross-entropy beside a policy gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.places import RECIPES
from support.rollout_house import House

from actors import environments
from actors.config import EnvironmentSettings
from actors.rollout_config import RetrySettings
from learner.batches.batch import prepare, report_of
from learner.config import LearnerSettings
from learner.credit_config import GroupCredit, ImprovementCredit, RawCredit, ReflectionCredit, TurnwiseCredit
from learner.credits import credit
from learner.objectives import loss_of, make
from protocols.errors import SettingError
from protocols.turns import INTERNALISED, Group, Role, Stop
from redraft import recipe as recipes

TASK = {"id": "signs/7128>12", "digits": "7128", "target": 12}
RIGHT, WRONG, OTHER = "7-1-2+8", "7+1-2-8", "7-1-2-8"
SAID = {  # by the line before: a first answer, a reflection on it, a second answer
    "?-14": "18",  # after WRONG
    "18": RIGHT,
    "?-16": "1",  # after OTHER
    "1": WRONG,
    "?0": "",
    "": RIGHT,
}
SETTINGS = RetrySettings(turns=2, episodes=3, reflect=True, internalise=True)


def played(settings: RetrySettings = SETTINGS, firsts: tuple[str, ...] = (WRONG, OTHER, RIGHT)) -> House:
    left = iter(firsts)

    def says(prompt: str) -> str:
        line = prompt.removesuffix("\n").rpartition("\n")[2]
        return next(left) if prompt == "7128>12\n" else SAID[line]

    made = EnvironmentSettings(name="signs", feedback="residual")
    return House(settings, says, lambda: environments.make(made), TASK)


def group(house: House) -> Group:
    return Group(bytes(16), 0, tuple(house.turns))


def begun(house: House) -> dict[int, str]:
    """The first answer of each episode; which of them says what is left to chance."""
    return {turn.episode: house.text(turn).strip() for turn in house.turns if turn.parent < 0 and not turn.index}


def by_turn(house: House, values) -> dict[tuple[str, str], float]:
    """Of each turn by its episode's first answer and its kind: `first`, `reflection`, `second`, `copy`."""
    names = {(Role.ATTEMPT, 0): "first", (Role.REFLECTION, 1): "reflection", (Role.ATTEMPT, 1): "second"}
    return {
        (begun(house)[turn.episode], names.get((turn.role, turn.index), "copy")): float(value)
        for turn, value in zip(house.turns, values, strict=True)
    }


def test_only_an_answer_that_was_made_right_is_written_again_as_if_it_had_followed_the_question():
    house = played()
    [copy] = [turn for turn in house.turns if turn.role is Role.RETRY]
    mended = {episode for episode, first in begun(house).items() if first == WRONG}
    [second] = [turn for turn in house.turns if (turn.role, turn.index) == (Role.ATTEMPT, 1) and turn.episode in mended]
    assert house.context(copy) == "7128>12\n" and copy.parent == -1
    assert house.context(second) == "7128>12\n7+1-2-8\n?-14\n18\n"
    assert copy.response.tolist() == second.response.tolist() and house.text(copy) == f"{RIGHT}\n"
    assert np.isnan(copy.logprobs).all() and copy.stop is Stop.AUTHORED and copy.versions == ()
    assert (copy.episode, copy.index, copy.reward, copy.truncated) == (second.episode, 1, 1.0, True)
    assert [turn.turn for turn in house.turns if INTERNALISED in turn.extra] == [copy.turn]
    assert house.asked == 9, "nothing more is sampled for it"
    assert not any(turn.role is Role.RETRY for turn in played(SETTINGS.model_copy(update={"internalise": False})).turns)


def test_later_right_answers_of_the_same_episode_are_not_written_again():
    said = iter([WRONG, RIGHT, RIGHT, WRONG])
    made = EnvironmentSettings(name="signs", feedback="residual")
    settings = RetrySettings(turns=4, internalise=True)
    house = House(settings, lambda prompt: next(said), lambda: environments.make(made), TASK)
    assert [(turn.role, turn.index) for turn in house.turns] == [
        (Role.ATTEMPT, 0),
        (Role.ATTEMPT, 1),
        (Role.RETRY, 1),
        (Role.ATTEMPT, 2),
        (Role.ATTEMPT, 3),
    ]
    assert [turn.parent for turn in house.turns] == [-1, 0, -1, 1, 3]


def test_it_is_worth_its_reward_and_moves_no_mean():
    """Firsts are worth 0, 0, 1 about 1/3, seconds 1, 0, 1 about 2/3; with it among them the mean would be 3/4."""
    house = played()
    [values] = credit([group(house)], TurnwiseCredit())
    assert by_turn(house, values) == pytest.approx(
        {
            (WRONG, "first"): -1 / 3,
            (OTHER, "first"): -1 / 3,
            (RIGHT, "first"): 2 / 3,
            (WRONG, "reflection"): 1 / 3,
            (OTHER, "reflection"): -2 / 3,
            (RIGHT, "reflection"): 1 / 3,
            (WRONG, "second"): 1 / 3,
            (OTHER, "second"): -2 / 3,
            (RIGHT, "second"): 1 / 3,
            (WRONG, "copy"): 1.0,
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        *(GroupCredit(std=False), ImprovementCredit(), ReflectionCredit(), RawCredit()),
        GroupCredit(std=False, overlong={"limit": 20, "cache": 20}),
    ],
)
def test_whatever_the_credit_is_the_others_are_worth_what_they_are_without_it(settings):
    house, plain = played(), played(SETTINGS.model_copy(update={"internalise": False}))
    [found], [wanted] = credit([group(house)], settings), credit([group(plain)], settings)
    found, wanted = by_turn(house, found), by_turn(plain, wanted)
    assert found.pop((WRONG, "copy")) == 1.0
    np.testing.assert_array_equal([found[key] for key in wanted], list(wanted.values()))
    assert found.keys() == wanted.keys()


def test_neither_success_nor_variance_nor_the_mean_reward_counts_it():
    house, plain = played(), played(SETTINGS.model_copy(update={"internalise": False}))
    assert (house.success, house.spread) == (plain.success, plain.spread) == (2 / 3, 2.0)
    for figure in ("reward", "reward_by_index", "reward_by_role", "success_by_index"):
        of, alone = (getattr(report_of([group(one)], 0), figure) for one in (house, plain))
        assert of == alone, figure


def learner(**changes) -> LearnerSettings:
    objective = {"name": "grpo", "correction": "none", "imitate": True, **changes}
    roles = {"attempt": 1.0, "reflection": 1.0, "retry": 0.5}
    return LearnerSettings(credit={"name": "turnwise"}, objective=objective, roles=roles, row_tokens=64)


def fitted(settings: LearnerSettings, house: House, imitated: float = -3.0) -> tuple[float, np.ndarray, dict]:
    """Loss and slopes of the batch, where sampled tokens have the sampler's log-probs and others `imitated`."""
    [[micro]] = prepare([group(house)], 0, settings).micros
    tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
    logprobs = torch.where(tensors["sampled"], tensors["sampler"], torch.tensor(imitated)).requires_grad_()
    reference = logprobs.detach() - 1
    loss, _ = loss_of(make(settings.objective), logprobs, torch.zeros_like(logprobs), tensors, reference)
    loss.backward()
    return loss.item(), logprobs.grad.numpy(), tensors


def test_it_is_learned_by_cross_entropy_with_the_weight_of_its_role_beside_the_policy_gradient():
    """Answers have 8 tokens with their end, reflections 3, 2 and 1: 54 of weight 1 and 8 of weight 1/2, so 58 in all.

    A sampled token at ratio 1 has the loss -A. Firsts: -8 (-1/3 - 1/3 + 2/3) = 0. Seconds with their reflections, 11,
    10 and 9 tokens of 1/3, -2/3 and 1/3: -(11 - 20 + 9) / 3 = 0. Eight imitated ones of half a token: 0.5 x 8 x 3.
    """
    loss, slopes, tensors = fitted(learner(), played())
    assert tensors["sampled"].sum() == 54 and (~tensors["sampled"]).sum() == 8
    assert loss == pytest.approx(0.5 * 8 * 3 / 58, rel=1e-5)
    wanted = np.where(tensors["sampled"], -tensors["advantages"].numpy(), -0.5) / 58
    np.testing.assert_allclose(slopes, wanted, rtol=1e-5)


def test_the_divergence_from_the_start_model_is_that_of_sampled_tokens():
    _, without, _ = fitted(learner(), played())
    _, slopes, tensors = fitted(learner(kl=0.1), played())
    added = np.where(tensors["sampled"], 0.1 * (1 - np.exp(-1)) / 58, 0.0)
    np.testing.assert_allclose(slopes - without, added, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [{"ratio": "sequence"}, {"correction": "tis"}, {"kl_reward": 0.1}, {"sequence_mask": (0.9, 1.1)}],
    ids=str,
)
def test_no_correction_and_no_ratio_touches_what_was_not_sampled(changes):
    _, slopes, tensors = fitted(learner(**changes), played())
    np.testing.assert_allclose(slopes[~tensors["sampled"].numpy()], -0.5 / 58, rtol=1e-5)


def test_without_imitation_it_is_not_trained():
    _, _, tensors = fitted(learner(imitate=False), played())
    assert tensors["sampled"].all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.objective.imitate=false"], "never trains answers on the question alone.*or learner.objective.imit"),
        (["rollout.internalise=false"], "learner.objective.imitate: .* set rollout.internalise"),
        (["rollout.plan={}"], "leave out rollout.step_judge, experience and plan, or internalise"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(overrides, words):
    with pytest.raises(SettingError, match=words):
        recipes.load(RECIPES / "signs-erl.yaml", overrides)
    with pytest.raises(ValidationError, match="or internalise"):
        RetrySettings(internalise=True, plan={})


def test_evaluations_play_without_it():
    assert SETTINGS.tested(2, 1).internalise is False
