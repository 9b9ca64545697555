"""Rollouts write what was played, and nothing else: roots and parents, who wrote what, and what the engine saw."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from support.rollout_house import House
from support.tokenizers import family

from actors import door, environments, rollouts
from actors.config import EnvironmentSettings
from actors.environments.base import TextEnvironment
from actors.environments.signs import Signs
from actors.rollout_config import (
    ActSettings,
    AttemptSettings,
    HintSettings,
    ReflectSettings,
    RetrySettings,
    RolloutSettings,
)
from learner.credit_config import ReflectionCredit
from learner.credits.reflection import reflection
from protocols.errors import SettingError
from protocols.turns import Group, Role, Stop

TASK = {"id": "signs/7128>12", "digits": "7128", "target": 12}
RIGHT, WRONG = "7-1-2+8", "7+1-2-8"


def signs():
    return environments.make(EnvironmentSettings(name="signs", feedback="residual"))


class Silent(TextEnvironment):
    """Says nothing of answers."""

    @classmethod
    def tasks(cls, data, split):
        return [TASK]

    def start(self, task):
        return "say\n"

    def act(self, text):
        return "heard\n", 0.0, True, False, {}


def in_turn(*texts: str):
    """An engine that says these texts one after the other."""
    left = iter(texts)
    return lambda prompt: next(left)


def test_a_turn_says_whether_the_environment_could_parse_its_answer():
    house = House(RetrySettings(turns=3), in_turn("what?", WRONG, RIGHT), signs, TASK)
    assert [turn.extra["parsed"] for turn in house.turns] == [False, True, True]


def test_a_turn_says_nothing_of_parsing_where_the_environment_does_not():
    house = House(AttemptSettings(), in_turn("hello"), Silent, TASK)
    assert "parsed" not in house.turns[0].extra


def test_a_right_answer_counts_as_parsed_whatever_its_form():
    for answer, success, parsed in ((None, True, True), ("", False, False), (None, False, False), (0, False, True)):
        returned = "said", 0.0, False, False, {"success": success, "answer": answer}
        assert door.outcome("Env", returned, 0.0)[1].parsed is parsed


def test_a_dialogue_grows_by_what_is_new_and_each_turn_was_sampled_after_its_ancestors():
    house = House(RetrySettings(turns=3, reflect=True), in_turn(WRONG, "18", RIGHT, "", RIGHT), signs, TASK)
    assert [turn.role.name for turn in house.turns] == ["ATTEMPT", "REFLECTION", "ATTEMPT", "REFLECTION", "ATTEMPT"]
    assert [turn.parent for turn in house.turns] == [-1, 0, 1, 2, 3]
    assert [house.context(turn) for turn in house.turns] == house.prompts
    assert house.prompts[-1] == "7128>12\n7+1-2-8\n?-14\n18\n7-1-2+8\n?0\n\n"
    assert house.success == 1.0 and house.asked == 5


def test_with_a_context_of_one_answer_each_later_turn_sees_the_question_and_the_last_answer_only():
    answers = (WRONG, "1", "7-1-2-8", "8", RIGHT, "", RIGHT)
    house = House(RetrySettings(turns=4, reflect=True, context=1), in_turn(*answers), signs, TASK)
    assert [house.context(turn) for turn in house.turns] == house.prompts
    assert house.prompts[3] == "7128>12\n7-1-2-8\n?-16\n", "the reflection on the second answer"
    assert house.prompts[4] == "7128>12\n7-1-2-8\n?-16\n8\n"
    assert house.prompts[5] == "7128>12\n7-1-2+8\n?0\n"
    assert [turn.parent for turn in house.turns] == [-1, 0, 1, -1, 3, -1, 5], "a new root where something is forgotten"
    assert [turn.after for turn in house.turns] == [-1, 0, 1, 2, 3, 4, 5], "but in time each follows the one before"


def test_with_a_context_of_two_answers_what_followed_the_older_one_is_seen_too():
    answers = (WRONG, "1", "7-1-2-8", "2", "7-1+2-8", "8", RIGHT)
    house = House(RetrySettings(turns=4, reflect=True, context=2), in_turn(*answers), signs, TASK)
    assert house.prompts[-1] == "7128>12\n7-1-2-8\n?-16\n2\n7-1+2-8\n?-12\n8\n"
    assert [house.context(turn) for turn in house.turns] == house.prompts


def test_the_best_of_several_last_answers_is_kept_the_first_of_equals_and_no_other():
    answers = (WRONG, "7-1-2-8", RIGHT, RIGHT, "x")
    house = House(RetrySettings(turns=2, best_of=4), in_turn(*answers), signs, TASK)
    assert [house.text(turn) for turn in house.turns] == [WRONG + "\n", RIGHT + "\n"] and house.asked == 5
    assert house.turns[1].reward == 1.0 and house.turns[1].parent == 0
    assert house.tokens == sum(len(answer) + 1 for answer in answers), "what is thrown away was sampled, too"


def test_a_teacher_writes_the_last_turn_which_nobody_sampled():
    asked = []

    async def teacher(messages):
        asked.append(messages)
        return "18" if len(asked) == 1 else RIGHT

    settings = RetrySettings(turns=2, reflect=True, teacher={"url": "http://localhost:1/v1", "model": "m"})
    house = House(settings, in_turn(WRONG), signs, TASK, teacher=teacher)
    first, reflection, last = house.turns
    assert last.reward == reflection.reward == 1.0 and house.asked == 1
    for turn in (reflection, last):
        assert turn.stop is Stop.AUTHORED and np.isnan(turn.logprobs).all() and turn.versions == ()
        assert turn.response[-1] == house.tokenizer.eos_token_id
    assert [(m["role"], m["content"]) for m in asked[1]] == [
        ("user", "7128>12\n"),
        ("assistant", WRONG),
        ("user", "?-14\n"),
        ("assistant", "18"),
        ("user", ""),
    ]
    assert not np.isnan(first.logprobs).any()


def test_an_episode_may_stop_at_success_or_when_it_repeats_itself():
    stops = RetrySettings(turns=5, stop_at_success=True)
    assert len(House(stops, in_turn(WRONG, RIGHT), signs, TASK).turns) == 2
    repeats = House(RetrySettings(turns=5, stop_at_repeat=True), in_turn(WRONG, "7-1-2-8", "7-1-2-8"), signs, TASK)
    assert len(repeats.turns) == 3 and repeats.turns[-1].truncated and not repeats.turns[1].truncated


def test_a_fixed_reflection_stands_in_place_of_the_models():
    settings = RetrySettings(turns=2, reflect=True, fixed_reflection="18")
    house = House(settings, in_turn(WRONG, RIGHT), signs, TASK)
    assert house.text(house.turns[1]) == "18\n" and np.isnan(house.turns[1].logprobs).all() and house.asked == 2


def test_a_plan_comes_before_the_first_answer_and_carries_its_reward():
    plan, asked = {"ask": "1+", "answer": "2>"}, "7128>12\n1+"
    for settings, last in ((AttemptSettings(plan=plan), 2), (RetrySettings(turns=2, plan=plan), 3)):
        house = House(settings, in_turn("18", RIGHT, WRONG), signs, TASK)
        planned, answer = house.turns[:2]
        assert (planned.role, answer.role) == (Role.REFLECTION, Role.ATTEMPT) and len(house.turns) == last
        assert planned.reward == answer.reward == 1.0 and planned.index == answer.index == 0 and answer.parent == 0
        assert house.prompts[0] == asked and house.prompts[1] == asked + "18\n2>"
    house = House(ReflectSettings(episodes=2, plan=plan), in_turn("1", WRONG, "18", RIGHT, "8", WRONG), signs, TASK)
    worth = reflection([Group(bytes(16), 0, house.turns)], ReflectionCredit())[0]
    assert house.turns[0].role is Role.REFLECTION and worth[0] == 0 and (np.nan_to_num(worth) != 0).sum() == 2


def test_reflections_of_one_failure_share_it_and_are_compared_by_their_retries():
    answers = (WRONG, "18", RIGHT, "8", WRONG, "1", WRONG, "18", RIGHT)
    house = House(ReflectSettings(episodes=4), in_turn(*answers), signs, TASK)
    attempt, rest = house.turns[0], house.turns[1:]
    assert attempt.role is Role.ATTEMPT and [turn.role for turn in house.turns].count(Role.ATTEMPT) == 1
    reflections = [turn for turn in rest if turn.role is Role.REFLECTION]
    retries = [turn for turn in rest if turn.role is Role.RETRY]
    assert len(reflections) == len(retries) == 4 and all(turn.parent == 0 for turn in reflections)
    assert sorted(turn.episode for turn in retries) == [0, 1, 2, 3]
    for retry in retries:
        reflection = house.turns[retry.parent]
        assert reflection.role is Role.REFLECTION and reflection.episode == retry.episode
        assert reflection.reward == retry.reward
    assert [turn.reward for turn in retries] == [1.0, 0.0, 0.0, 1.0] and house.spread == 1.0
    flat = House(ReflectSettings(episodes=2, solved=True), in_turn(RIGHT, "", RIGHT, "", RIGHT), signs, TASK)
    assert flat.spread == 0.0, "the first answer, which all share, does not make them differ"


def test_a_failure_that_the_task_brings_along_is_the_first_turn_and_is_not_sampled():
    tokenizer = House(AttemptSettings(), in_turn(WRONG), signs, TASK).tokenizer
    failed = TASK | {"attempt": tokenizer.encode(WRONG + "\n")}
    house = House(ReflectSettings(episodes=2), in_turn("18", RIGHT, "8", WRONG), signs, failed)
    assert house.text(house.turns[0]) == WRONG + "\n" and house.turns[0].stop is Stop.AUTHORED and house.asked == 4
    assert house.turns[1].parent == 0 and house.context(house.turns[1]) == "7128>12\n7+1-2-8\n?-14\n"


def test_what_is_solved_is_not_reflected_on_unless_asked_and_tries_go_on_until_a_failure():
    assert len(House(ReflectSettings(episodes=2), in_turn(RIGHT), signs, TASK).turns) == 1
    house = House(ReflectSettings(episodes=2, tries=3), in_turn(RIGHT, WRONG, "18", RIGHT, "8", WRONG), signs, TASK)
    assert house.text(house.turns[0]) == WRONG + "\n" and len(house.turns) == 5
    solved = House(ReflectSettings(episodes=2, solved=True), in_turn(RIGHT, "", RIGHT, "1", WRONG), signs, TASK)
    assert [turn.reward for turn in solved.turns if turn.role is Role.RETRY] == [1.0, 0.0]


def test_a_hinted_answer_is_kept_as_if_it_had_followed_the_question():
    house = House(HintSettings(), in_turn(WRONG, RIGHT), signs, TASK)
    assert house.prompts[1] == "7128>12\n7+1-2-8\n?-14\n18\n", "the hint: which signs to flip"
    attempt, kept = house.turns
    assert kept.role is Role.RETRY and kept.parent == -1 and kept.reward == 1.0
    assert house.context(kept) == "7128>12\n" and house.text(kept) == RIGHT + "\n"
    assert np.isnan(kept.logprobs).all(), "it was sampled after other tokens"
    assert len(House(HintSettings(), in_turn(WRONG, WRONG), signs, TASK).turns) == 1
    assert len(House(HintSettings(), in_turn(RIGHT), signs, TASK).turns) == 1
    assert len(House(HintSettings(), in_turn("nonsense"), signs, TASK).turns) == 1, "no hint for what is no answer"


def test_act_goes_on_until_the_environment_ends_it_or_so_many_actions_are_done():
    task = environments.tasks(EnvironmentSettings(name="minicraft"), _data(), "test")[0]
    house = House(ActSettings(turns=3), in_turn("+z", "+z", "+z", "+z"), "minicraft", task)
    assert [turn.role for turn in house.turns] == [Role.ACTION] * 3 and house.turns[-1].truncated
    assert all(turn.extra["refused"] for turn in house.turns)
    assert [house.context(turn) for turn in house.turns] == house.prompts


def _data():
    from actors.config import DataSettings

    return DataSettings()


def test_a_rollout_of_ones_own_is_named_by_its_module():
    settings = TypeAdapter(RolloutSettings).validate_python({"name": f"{__name__}:twice", "options": {"times": 2}})
    house = House(settings, in_turn(WRONG, RIGHT), signs, TASK)
    assert [turn.reward for turn in house.turns] == [0.0, 1.0]
    with pytest.raises(SettingError, match="rollout.name.*attempt, retry.*package.module"):
        rollouts.find("nonsense")


async def twice(stage):
    from actors.rollouts.dialogue import Dialogue

    async def once(stage, environment, number):
        dialogue = Dialogue(stage, environment.observation, number)
        for _ in range(stage.settings.options["times"]):
            outcome = await environment.step(await dialogue.say(Role.ATTEMPT))
            dialogue.score(0, outcome)
            dialogue.hear(environment.observation)

    await stage.each_episode(once)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"name": "chess"}, "name must be one of attempt, retry"),
        ({"name": "retry", "turns": 1}, "greater than or equal to 2"),
        ({"name": "retry", "fixed_reflection": "x"}, "only acts with rollout.reflect"),
        ({"name": "search", "cut": "end", "splice": "replayed"}, "use verbatim"),
        ({"name": "attempt", "turns": 3}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(RolloutSettings).validate_python(values)


def test_how_often_the_model_succeeds_leaves_out_what_others_did_for_it():
    async def right(messages):
        return RIGHT

    taught = RetrySettings(turns=2, teacher={"url": "http://localhost:1/v1", "model": "m"})
    assert House(taught, in_turn(WRONG), signs, TASK, teacher=right).success == 0.0
    assert House(HintSettings(), in_turn(WRONG, RIGHT), signs, TASK).success == 0.0
    best = RetrySettings(turns=2, best_of=4)
    assert House(best, in_turn(WRONG, RIGHT, WRONG, WRONG, WRONG), signs, TASK).success == 0.25
    assert House(RetrySettings(turns=2), in_turn(WRONG, RIGHT), signs, TASK).success == 1.0


def test_two_answers_that_cannot_be_parsed_are_no_repetition():
    settings = RetrySettings(turns=3, stop_at_repeat=True)
    assert len(House(settings, in_turn("x", "y", "z"), signs, TASK).turns) == 3


def test_a_teachers_text_that_the_tokenizer_cannot_spell_ends_the_episode_and_not_the_run():
    async def accented(messages):
        return "é"

    settings = RetrySettings(turns=2, teacher={"url": "http://localhost:1/v1", "model": "m"})
    house = House(settings, in_turn(WRONG), signs, TASK, teacher=accented)
    assert [turn.role for turn in house.turns] == [Role.ATTEMPT, Role.ERROR]
    assert [failure.kind for failure in house.failures] == ["teacher"]


def thinks(*answers: str):
    """An engine that thinks before each of these answers, and is heard with what a thinking model's template shows."""
    return in_turn(*(f"<think>\nhm\n</think>\n\n{answer}" for answer in answers))


class Unthought(Signs):
    """Judges what follows the thinking."""

    def judge(self, task: dict, text: str):
        return super().judge(task, text.rpartition("</think>\n\n")[2])


@pytest.mark.parametrize("context", [None, 1])
def test_where_the_template_strips_thinking_each_turn_is_a_root_that_holds_the_dialogue_as_rendered(context):
    settings = RetrySettings(turns=3, reflect=True, context=context)
    tokenizer = family("qwen3")
    answers = thinks(WRONG, "18", "7-1-2-8", "8", RIGHT)
    house = House(settings, answers, Unthought, TASK, tokenizer=tokenizer, on_rewrite="new_root")
    assert [turn.parent for turn in house.turns] == [-1] * 5, "each a sequence of its own"
    assert [turn.after for turn in house.turns] == [-1, 0, 1, 2, 3]
    assert [house.context(turn) for turn in house.turns] == house.prompts
    assert not any("hm" in prompt for prompt in house.prompts)
    assert (WRONG in house.prompts[-1]) == (context is None) and "7-1-2-8" in house.prompts[-1]
    assert [turn.reward for turn in house.turns][-1] == 1.0


def test_reflections_on_one_answer_are_compared_where_each_turn_is_a_root():
    settings = ReflectSettings(episodes=2)
    answers = thinks(WRONG, "1", RIGHT, "2", WRONG)
    house = House(settings, answers, Unthought, TASK, tokenizer=family("qwen3"), on_rewrite="new_root")
    group = Group(bytes(16), 0, tuple(house.turns))
    (worth,) = reflection([group], ReflectionCredit())
    assert [turn.parent for turn in house.turns] == [-1] * 5
    reflections = [worth[turn.turn] for turn in house.turns if turn.role is Role.REFLECTION]
    assert len(reflections) == 2 and reflections[0] == -reflections[1] != 0


def test_a_hinted_answer_is_kept_without_the_hint_where_each_turn_is_a_root():
    answers = thinks(WRONG, RIGHT)
    house = House(HintSettings(), answers, Unthought, TASK, tokenizer=family("qwen3"), on_rewrite="new_root")
    assert [turn.parent for turn in house.turns] == [-1, -1] and len(house.prompts) == 2
    assert (house.turns[0].prompt == house.turns[1].prompt).all() and house.turns[1].stop is Stop.AUTHORED


class Told(Signs):
    """Asks with chat messages."""

    blocking = False

    def question(self, task: dict) -> list[dict]:
        shown = [{"role": "user", "content": "11>2"}, {"role": "assistant", "content": "1+1"}]
        said = super().question(task)
        return [{"role": "system", "content": "Sum."}, *shown, {"role": "user", "content": said}]

    def start(self, task: dict):
        super().start(task)
        return self.question(task)


def test_a_question_of_chat_messages_is_rendered_with_its_roles_and_the_dialogue_goes_on_from_it():
    house = House(RetrySettings(turns=2), in_turn(WRONG, RIGHT), Told, TASK, tokenizer=family("chatml"))
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    shown = turn("system", "Sum.") + turn("user", "11>2") + turn("assistant", "1+1") + turn("user", "7128>12\n")
    assert house.prompts[0] == shown + "<|im_start|>assistant\n" and house.prompts[1].startswith(house.prompts[0])
    assert [turn.parent for turn in house.turns] == [-1, 0]


class Misasks(Told):
    def question(self, task: dict) -> list[dict]:
        return [{"role": "user", "content": "q"}, {"role": "tool", "content": "x"}]


@pytest.mark.parametrize(("environment", "name"), [(Misasks, "chatml"), (Told, "gemma")])
def test_a_question_that_cannot_be_rendered_ends_its_episode_and_not_the_run(environment, name):
    house = House(AttemptSettings(), in_turn(WRONG), environment, TASK, tokenizer=family(name))
    assert [turn.role for turn in house.turns] == [Role.ERROR] and len(house.failures) == 1


def test_a_response_that_ended_with_another_end_token_is_continued_as_the_template_would():
    house = House(RetrySettings(turns=2), in_turn(WRONG, RIGHT), signs, TASK, tokenizer=family("chatml"))
    first, second = house.turns
    assert first.response[-1] == house.tokenizer.eos_token_id, "the engine ends with the eos, not with <|im_end|>"
    assert house.tokenizer.decode(second.prompt).startswith("\n<|im_start|>user\n")
