"""The rollout rollback: where a failed episode goes back to, what is told on the way on, what is kept and learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.places import RECIPES
from support.rollout_house import House, Speaker
from support.tokenizers import Newlines

from actors import door
from actors.action_config import RollbackSettings
from actors.door import EpisodeFailure
from actors.environments.minicraft import Minicraft
from actors.rollout_config import ActSettings
from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.credit_config import TrajectoryCredit
from learner.credits import credit
from learner.objectives import loss_of, make
from protocols.errors import SettingError
from protocols.turns import Group, Role, Stop
from redraft import recipe as recipes
from redraft.models.make import build_tokenizer

TASK = {"id": "minicraft/test/0", "base": "abdfh", "recipes": ["dhc", "fab"], "good": 1}
QUESTION = "abdfh;1dhc;2fab>\n"
BAD, GOOD = ["+d", "+h", "+c", *["*1"] * 5], ["+f", "+a", "+b", "*2"]
SETTINGS = RollbackSettings(
    turns=8, branches=2, alpha=0.5, judge="environment", back_to="after", template="{experience};"
)


def policy(prompt: str) -> str:
    """Follows the bad recipe, but told of the other one that one."""
    done = [line for line in prompt.splitlines()[1:] if line[0] in "+*@"]
    if not prompt.startswith("@2;"):
        return BAD[len(done)]
    return GOOD[sum(action in GOOD for action in done)]


def played(settings: RollbackSettings = SETTINGS, says=policy, **named) -> House:
    return House(settings, says, Minicraft, TASK, **named)


def changed(**changes) -> RollbackSettings:
    return RollbackSettings(**SETTINGS.model_dump() | changes)


def path(house: House, turn) -> list:
    found = [turn]
    while found[-1].parent >= 0:
        found.append(house.turns[found[-1].parent])
    return found[::-1]


def ways(house: House) -> list[list]:
    """The paths to the ends of what was kept of ways on."""
    ends = {turn.episode: turn for turn in house.turns if turn.episode >= SETTINGS.episodes}
    return [path(house, turn) for turn in ends.values()]


def actions(house: House, turns) -> list[str]:
    return [house.text(turn).strip() for turn in turns]


@pytest.mark.parametrize(("back_to", "kept"), [("after", ["+d", "+h", "+c"]), ("before", ["+d", "+h"])])
def test_a_failed_episode_goes_on_from_its_first_error_and_what_succeeds_is_kept_without_what_was_told(back_to, kept):
    house = played(changed(back_to=back_to))
    assert actions(house, house.turns[:8]) == BAD and house.turns[7].terminated
    one, other = ways(house)
    assert actions(house, one) == actions(house, other) == kept + GOOD
    assert [turn.turn for turn in one[: len(kept)]] == list(range(len(kept))), "what came before is shared"
    new = one[len(kept) :]
    assert [turn.role for turn in new] == [Role.REVISION, *[Role.ACTION] * 3]
    assert [turn.index for turn in new] == list(range(len(kept), len(kept) + 4))
    assert all(np.isnan(turn.logprobs).all() and turn.stop is Stop.AUTHORED for turn in new)
    assert {turn.episode for turn in new} == {1} and {turn.episode for turn in other[len(kept) :]} == {2}
    said = "!\n" if back_to == "after" else ".\n"
    assert house.tokenizer.decode(new[0].prompt) == said
    assert (new[-1].reward, new[-1].terminated) == (1.0, True)


def test_what_was_kept_is_what_the_environment_answers_to_these_very_actions():
    house = played()
    for turns in ways(house):
        environment = Minicraft()
        environment.reset(seed=0, options={"task": TASK})
        heard = [environment.step(action)[:2] for action in actions(house, turns)]
        assert [house.tokenizer.decode(turn.prompt) for turn in turns[1:]] == [said for said, _ in heard][:-1]
        assert [turn.reward for turn in turns] == [reward for _, reward in heard]


def test_on_the_way_on_the_lesson_stands_before_the_question_and_the_history_is_the_same():
    house = played()
    assert house.prompts[:8] == [house.context(turn) for turn in house.turns[:8]]
    told = house.prompts[8:]
    assert len(told) == 8 and all(prompt.startswith("@2;" + QUESTION) for prompt in told)
    assert told[0] == "@2;" + house.context(ways(house)[0][3]), "but for what is told, what was written"
    assert house.asked == 16 and not any("@2" in house.context(turn) for turn in house.turns)


def test_what_fails_again_is_not_kept_and_the_group_has_nothing_to_train():
    house = played(says=lambda prompt: policy(prompt.removeprefix("@2;")))
    assert len(house.turns) == 8 and house.spread == 0.0 and house.success == 0.0
    assert played().spread == 1.0 and played().success == 0.0, "what was told says nothing of how good the model is"


def test_an_episode_that_succeeds_is_not_rolled_back():
    house = played(says=lambda prompt: policy("@2;" + prompt))
    assert actions(house, house.turns) == GOOD and house.asked == 4 and house.spread == 1.0


def test_nothing_goes_on_after_the_last_action_nor_without_an_error_or_a_lesson():
    assert played(changed(turns=3)).asked == 3, "the error was the last action"
    assert played(changed(turns=2)).asked == 2, "no action was refused"

    class Dumb(Minicraft):
        def lesson(self, task, played):
            return []

    assert len(House(SETTINGS, policy, Dumb, TASK).turns) == 8


def reflecting(answer: str):
    def says(prompt: str) -> str:
        return answer if "It failed" in prompt else policy(prompt)

    return says


ACTOR = RollbackSettings(turns=8, branches=1, alpha=0.5, template="{experience};")
BYTES = Newlines(build_tokenizer("bytes", 4096))


def test_the_model_itself_may_name_the_action_that_went_wrong():
    said = "@2;action 3 needs c"
    house = played(ACTOR, reflecting(said), max_tokens=4, tokenizer=BYTES)
    [asked] = [prompt for prompt in house.prompts if "It failed" in prompt]
    assert QUESTION + "\n1. +d\n.\n\n2. +h\n.\n\n3. +c\n!\n\n4. *1\n!\n" in asked
    assert house.prompts[9].startswith(f"{said};{QUESTION}"), "all that it said, beyond the length of an action"


@pytest.mark.parametrize(
    ("answer", "kept"), [("1", []), ("3: c cannot be had", ["+d", "+h"]), ("0", None), ("?", None)]
)
def test_it_goes_back_to_before_the_action_that_the_model_named_first(answer, kept):
    def says(prompt: str) -> str:
        if "It failed" in prompt:
            return answer
        return policy("@2;" + prompt) if prompt.startswith(answer) else policy(prompt)

    house = played(ACTOR, says, tokenizer=BYTES)
    assert not any(turn.role is Role.REFLECTION for turn in house.turns), "it is not trained"
    if kept is None:
        assert house.asked == 9 and len(house.turns) == 8
    else:
        [way] = ways(house)
        assert actions(house, way) == kept + GOOD
        assert way[len(kept)].parent == len(kept) - 1, "the whole episode again is a root of its own"


def test_where_the_reflection_or_a_way_on_does_not_fit_the_episode_stays_as_it_was_played():
    for settings, long in ((ACTOR, 60), (changed(template=60 * " " + "{experience};"), 70)):
        house = played(settings, Speaker(BYTES, reflecting("3"), longest=long), tokenizer=BYTES)
        assert len(house.turns) == 8 and not any(turn.role is Role.ERROR for turn in house.turns)
        assert {failure.kind for failure in house.failures} == {"too_long"}


def test_bad_prefixes_are_not_trained_and_corrections_and_successes_are_worth_their_end():
    """Three of eight actions are shared; the two ways on have four actions each, from the first of which all count."""
    house = played()
    [values] = credit([Group(bytes(16), 0, tuple(house.turns), house.close.extra)], TrajectoryCredit())
    assert house.close.extra["alpha"] == 0.5
    np.testing.assert_array_equal(values, [*[np.nan] * 8, *[1.0] * 8])
    once = played(says=lambda prompt: policy("@2;" + prompt))
    [values] = credit([Group(bytes(16), 0, tuple(once.turns), once.close.extra)], TrajectoryCredit())
    assert values.tolist() == [1.0] * 4


def test_the_loss_is_the_mean_cross_entropy_of_the_corrections():
    """Of two ways on of four actions with three tokens each: 24 tokens, each weighing 1/24."""
    house = played()
    group = Group(bytes(16), 0, tuple(house.turns), house.close.extra)
    learner = LearnerSettings(credit={"name": "trajectory"}, objective={"name": "sft"}, row_tokens=128)
    [[micro]] = prepare([group], 0, learner).micros
    tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
    logprobs = torch.linspace(-2, 0, 24).requires_grad_()
    loss, _ = loss_of(make(learner.objective), logprobs, torch.zeros(24), tensors)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    np.testing.assert_allclose(logprobs.grad.numpy(), -1 / 24, rtol=1e-5)
    assert house.tokenizer.decode(tensors["targets"].numpy()) == "+f\n+a\n+b\n*2\n" * 2


@pytest.mark.parametrize("returned", [None, [{"content": 1, "when_to_use": ""}], [{"content": "x"}], ["x"]])
def test_a_lesson_that_is_none_ends_the_episode_and_not_the_actor(returned):
    with pytest.raises(EpisodeFailure, match="Shop.lesson returned"):
        door.lessons("Shop.lesson", returned)
    assert door.lessons("Shop.lesson", [{"when_to_use": "w", "content": "c"}]) == [{"when_to_use": "w", "content": "c"}]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.objective={name: grpo}"], "grpo never trains corrections of failed episodes; set it to awr or sft"),
        (["learner.credit={name: group}"], "group compares .*, which rollout rollback does not play"),
        (["rollout.reflect_tokens=9"], "rollout.reflect_tokens only acts with rollout.judge: actor"),
        (["rollout.template=none"], "template must hold {experience} once"),
        (["rollout.judge=actor", "rollout.reflect_prompt=what"], "reflect_prompt must hold {history} once"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(overrides, words):
    with pytest.raises(SettingError, match=words):
        recipes.load(RECIPES / "minicraft-leafe.yaml", overrides)


def test_evaluations_act_and_do_not_go_back():
    assert SETTINGS.tested(None, 3) == ActSettings(turns=8, episodes=3)
    with pytest.raises(ValidationError):
        RollbackSettings(branches=0)
