"""A judge that is asked: a model or a service gives the reward, with the teacher's retries and budget, and once for the
same answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from support.rollout_house import House
from test_teacher import completion, endpoint

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.engines.teacher import TeacherBudget
from actors.environments import answers, graded_mark
from actors.rollout_config import AttemptSettings
from protocols.errors import SettingError
from protocols.turns import Role
from redraft.models.make import build_tokenizer

PROMPT = "Question: {question} Answer: {text} Hidden: {note}. Mark it from 0 to 10."


def settings(server, **judge) -> EnvironmentSettings:
    given = {"endpoint": server.url, "timeout_s": 5, "retries": 1} | judge
    options = {"reward": {"judge": given}, "prompt": "question"}
    return EnvironmentSettings(name="rows", time_limit_s=60, options=options)


def play(tmp_path: Path, played: EnvironmentSettings, *answers: str) -> House:
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "Why?", "note": "secret"}) + "\n")
    path = str(tmp_path / "t.jsonl")
    [task] = environments.tasks(played, DataSettings(path=path, test=path), "train")
    said = iter(answers)
    rollout, tokenizer = AttemptSettings(episodes=len(answers)), build_tokenizer("bytes", 4096)
    return House(rollout, lambda prompt: next(said), lambda: environments.make(played), task, tokenizer=tokenizer)


def rewards(house: House) -> list[float]:
    return [turn.reward for turn in house.turns if turn.role is Role.ATTEMPT]


def test_a_models_mark_is_the_reward_and_the_same_answer_is_asked_for_once(tmp_path):
    asked = []

    def reply(number, handler):
        asked.append(handler.asked["messages"][0]["content"])
        return completion("It is good. 8/10 would be too much: 5" if "a" in asked[-1].split()[3] else "Mark: 10")

    with endpoint(reply) as server:
        house = play(tmp_path, settings(server, model="any", prompt=PROMPT, best=10), "abc", "xyz", "abc")
    assert sorted(rewards(house)) == [0.5, 0.5, 1.0] and len(asked) == 2
    assert "Answer: abc Hidden: secret." in "".join(asked)


def test_a_service_answers_as_a_function_does_after_a_failure_that_is_tried_again(tmp_path):
    def reply(number, handler):
        if number == 0:
            return 503, {}, b"{}"
        assert handler.asked["row"] == {"question": "Why?", "note": "secret"}
        return 200, {}, json.dumps({"length": len(handler.asked["text"]), "success": False}).encode()

    with endpoint(reply) as server:
        house = play(tmp_path, settings(server), "abcd")
    [turn] = house.turns
    assert (turn.reward, turn.extra["parts"], turn.extra["success"]) == (4, {"length": 4.0}, False)


@pytest.mark.parametrize(
    ("said", "best", "mark"),
    [
        *(("Mark: 8/10.", 10, 8), ("**10/10**", 10, 10), ("8 out of 10", 10, 8), ("7 1/2 / 10", 10, 7.5)),
        *(("4 of 5", 5, 4), ("between 5 and 10", 10, 10), ("8/10", 1, 0.8), ("0.8", 1, 0.8), ("8/10", 5, None)),
    ],
)
def test_a_mark_out_of_the_best_is_that_mark(said, best, mark):
    assert answers.last_mark(said, best) == mark


@pytest.mark.parametrize("said", ["very good", "11", "-1", "8/20", ""])
def test_what_holds_no_mark_costs_its_episode(tmp_path, said):
    with endpoint(lambda number, handler: completion(said)) as server:
        house = play(tmp_path, settings(server, model="any", prompt=PROMPT, best=10), "abc")
    assert [turn.extra["kind"] for turn in house.turns] == ["teacher"]


@pytest.mark.parametrize(
    ("said", "reward", "success"),
    [
        ("Good.\n<reward>75</reward>", 0.75, True),
        ("<reward>90</reward> at first, but <reward> 40 </reward>", 0.4, False),
        ("<reward>60</reward>", 0.6, True),
        ("<reward>50</reward>", 0.0, False),
        ("<reward>101</reward>", 0.0, False),
        ("75", 0.0, False),
    ],
)
def test_a_judge_that_grades_gives_its_mark_and_nothing_where_that_is_none(tmp_path, said, reward, success):
    asked, unparsed = [], {"result": "unparsed"}

    def reply(number, handler):
        asked.append(handler.asked["messages"][0]["content"])
        return completion(said)

    before = REGISTRY.get_sample_value("redraft_graded_marks_total", unparsed) or 0
    with endpoint(reply) as server:
        house = play(tmp_path, settings(server, model="any", graded=True), "Because.")
    assert rewards(house) == [reward] and house.turns[0].extra["success"] is success
    assert "Why?" in asked[0] and "Because." in asked[0] and graded_mark.UNKNOWN in asked[0]
    counted = (REGISTRY.get_sample_value("redraft_graded_marks_total", unparsed) or 0) - before
    assert counted == (said in ("<reward>50</reward>", "<reward>101</reward>", "75"))


def test_a_question_that_a_model_made_is_judged_beside_its_reference(tmp_path):
    asked = []

    def reply(number, handler):
        asked.append(handler.asked["messages"][0]["content"])
        return completion("<reward>80</reward>")

    with endpoint(reply) as server:
        made = environments.make(settings(server, model="any", graded=True))
        task = made.posed({"id": "t", "question": "Why?", "row": {}}, "What is rain?")
        system = {"role": "system", "content": "Be short."}
        asking = [system, {"role": "user", "content": "Why?"}]
        posed = made.posed({"id": "t", "question": asking, "row": {}}, "What is rain?")
        assert posed["question"] == [system, {"role": "user", "content": "What is rain?"}]
        for known in ({}, {"reference": ["Water."]}):
            made.reset(seed=0, options={"task": {"id": "s", **task, **known}})
            assert made.step("Drops.")[1] == 0.8
    assert "What is rain?" in asked[0] and graded_mark.UNKNOWN in asked[0] and '["Water."]' in asked[1]
    with pytest.raises(SettingError, match="graded: true"):
        options = {"reward": "exact", "prompt": "question", "answer": "note"}
        environments.make(EnvironmentSettings(name="rows", options=options)).posed({}, "What?")


def test_a_column_of_answers_is_told_where_the_recipe_names_none(tmp_path):
    asked = []

    def reply(number, handler):
        asked.append(handler.asked["messages"][0]["content"])
        return completion("5")

    with endpoint(reply) as server:
        made = environments.make(settings(server, model="any", prompt="{question} {answer} {text}", best=10))
        for row in ({"question": "2+2?", "answer": "4"}, {"question": "2+2?"}):
            made.reset(seed=0, options={"task": {"id": "t", "question": "2+2?", "row": row}})
            if "answer" in row:
                assert made.step("four")[1] == 0.5
            else:
                with pytest.raises(SettingError, match="'answer' is no column"):
                    made.step("four")
    assert asked == ["2+2? 4 four"]


def test_its_budget_and_a_refused_key_end_the_run(tmp_path):
    with endpoint(lambda number, handler: completion("5")) as server:
        asked = settings(server, model="any", prompt=PROMPT, best=10, budget_tokens=3, concurrency=1)
        with pytest.raises(TeacherBudget, match=r"reward\.judge\.budget_tokens"):
            play(tmp_path, asked, "abc", "abd", "abe")
    with endpoint(lambda number, handler: (401, {}, b"{}")) as server:
        with pytest.raises(SettingError, match=r"reward\.judge\.key_env"):
            play(tmp_path, settings(server, model="any", prompt=PROMPT), "abc")


@pytest.mark.parametrize(
    ("judge", "key"),
    [
        ({"model": "any"}, "prompt must hold"),
        ({"prompt": "{text}"}, "name one"),
        ({"graded": True}, "name one"),
        ({"graded": True, "model": "any", "prompt": "{text}"}, "leave prompt and best out"),
        ({"budget_tokens": 5}, "name one"),
        ({"endpoint": "nowhere"}, "endpoint"),
        ({"temper": 1}, "temper"),
    ],
)
def test_settings_of_a_judge_that_cannot_work_are_refused(judge, key):
    options = {"reward": {"judge": {"endpoint": "http://127.0.0.1:1"} | judge}}
    with pytest.raises(SettingError, match=rf"environment\.options\.reward\.judge.*{key}"):
        environments.make(EnvironmentSettings(name="rows", time_limit_s=90, options=options))


def test_a_step_has_to_have_time_for_the_judge():
    options = {"reward": {"judge": {"endpoint": "http://127.0.0.1:1"}}}
    with pytest.raises(SettingError, match="environment.time_limit_s"):
        environments.make(EnvironmentSettings(name="rows", options=options))
