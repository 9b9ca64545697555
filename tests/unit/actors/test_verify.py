"""The rollout verify: what it asks, when an answer stands, and what a verification is worth."""

import pytest
import yaml
from support.places import RECIPES
from support.rollout_house import House

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.signs_tasks import attempt_of, targets_of
from actors.rollout_config import VerifySettings
from learner.credit_config import GroupCredit, TurnwiseCredit
from learner.credits import credit
from protocols.errors import SettingError
from protocols.turns import Group, Role
from redraft import recipe as recipes
from redraft.evaluation.episodes import answers, episodes

ASKED = {"verify_prompt": "right?\n", "right": "^yes$", "revise_prompt": "again\n"}
[TASK] = environments.tasks(EnvironmentSettings(name="signs"), DataSettings(train_size=1), "train")
RIGHT = attempt_of(TASK["digits"], targets_of(TASK["digits"])[TASK["target"]][0])


def played(*said: str, turns: int = 2) -> House:
    told = iter(said)
    return House(VerifySettings(turns=turns, **ASKED), lambda prompt: next(told), "signs", TASK)


def told(house: House) -> list[tuple]:
    return [(turn.role, turn.index, turn.reward) for turn in house.turns]


@pytest.mark.parametrize(("answer", "worth"), [(RIGHT, 1.0), ("1", 0.0)])
def test_an_answer_that_is_said_to_be_right_stands_and_the_verdict_is_judged(answer, worth):
    house = played(answer, " yes\n")
    assert told(house) == [(Role.ATTEMPT, 0, worth), (Role.VERIFICATION, 0, worth)]
    assert [turn.truncated for turn in house.turns] == [False, True] and house.success == worth
    [episode] = episodes(house.turns, "answers")
    assert [one.success for one in answers(episode, 2)] == [bool(worth)] * 2, "what stands counts at later turns"


@pytest.mark.parametrize(("answer", "verdict"), [(RIGHT, 0.0), ("1", 1.0)])
def test_an_answer_that_is_said_to_be_wrong_is_revised_once_more_at_most(answer, verdict):
    house = played(answer, "no, yes", RIGHT)
    first = float(answer == RIGHT)
    assert told(house) == [(Role.ATTEMPT, 0, first), (Role.VERIFICATION, 0, verdict), (Role.ATTEMPT, 1, 1.0)]
    assert [turn.parent for turn in house.turns] == [-1, 0, 1] and house.success == 1.0
    assert "right?" in house.prompts[1] and house.prompts[2].endswith("again\n")
    assert not any("?x" in prompt or "?0" in prompt for prompt in house.prompts), "no feedback is told"


def test_more_turns_verify_each_answer_but_the_last():
    house = played("1", "no", "2", "no", RIGHT, turns=3)
    assert told(house)[2:] == [(Role.ATTEMPT, 1, 0.0), (Role.VERIFICATION, 1, 1.0), (Role.ATTEMPT, 2, 1.0)]


def test_verifications_are_compared_with_verifications_and_are_no_part_of_an_episodes_return():
    given = iter([RIGHT, "1"])  # two episodes: both say that they are right, one is
    house = House(
        VerifySettings(episodes=2, **ASKED),
        lambda prompt: "yes" if "right?" in prompt else next(given),
        "signs",
        TASK,
    )
    found = {(turn.role, turn.reward): turn.turn for turn in house.turns}
    batch = [Group(bytes(16), 0, tuple(house.turns))]
    (worth,) = credit(batch, TurnwiseCredit())
    for role in (Role.ATTEMPT, Role.VERIFICATION):
        assert [worth[found[role, 1.0]], worth[found[role, 0.0]]] == [0.5, -0.5]
    (worth,) = credit(batch, GroupCredit(std=False))
    assert sorted(worth.tolist()) == [-0.5, -0.5, 0.5, 0.5]


def test_a_verdict_that_all_or_nothing_would_match_is_refused():
    values = yaml.safe_load((RECIPES / "signs-pag.yaml").read_text())
    for right, words in (("(", "no regular expression"), ("", "empty verification")):
        changed = values | {"rollout": values["rollout"] | {"right": right}}
        with pytest.raises(SettingError, match=words):
            recipes.build(changed)


def test_an_evaluation_of_one_turn_verifies_nothing():
    settings = VerifySettings(turns=3)
    assert settings.tested(1, 4).name == "attempt"
    assert (settings.tested(None, 4).turns, settings.tested(2, 4).turns, settings.tested(2, 4).episodes) == (3, 2, 4)
