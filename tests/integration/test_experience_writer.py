"""Lessons that a model behind an endpoint writes: from the best and the worst episode, and only those it stands by."""

from __future__ import annotations

import json

from test_teacher import completion, endpoint

from actors.environments.base import Played
from actors.episode_config import ExperienceWriterSettings
from redraft.evaluation.experience import APART, FAILURE, SUCCESS, Writer, lessons_of, questions, rated

WON = Played((("look", "a key"), ("take key", "")), 1.0, True)
LOST = Played((("wait", ""),), 0.0, False)


def lesson(content: str) -> dict:
    return {"when_to_use": "something is lost", "content": content}


def test_a_success_a_failure_and_their_difference_are_asked_about():
    asked = questions("Find it.", [LOST, WON, LOST])
    assert [wanted for wanted, _ in asked] == [SUCCESS, FAILURE, APART]
    assert all("Find it." in shown for _, shown in asked) and "Action: take key" in asked[0][1]
    assert [wanted for wanted, _ in questions("Find it.", [WON])] == [SUCCESS]
    assert [wanted for wanted, _ in questions("Find it.", [LOST, LOST])] == [FAILURE]
    assert questions("Find it.", []) == []


def test_what_is_no_list_of_lessons_or_not_rated_well_is_none():
    said = f"Here they are:\n```json\n{json.dumps([lesson('look'), {'content': 'x'}, 3])}\n```"
    assert lessons_of(said) == [lesson("look")]
    assert lessons_of("none") == lessons_of("[not json]") == []
    three = [lesson(name) for name in "abc"]
    assert rated("Lesson 1: 0.8\nLesson 2: 0.2", three) == three[:1]


def test_the_writer_asks_for_lessons_then_for_their_rating_and_counts_what_brought_none():
    def reply(number, handler):
        prompt = handler.asked["messages"][0]["content"]
        if prompt.startswith("These lessons"):
            return completion("Lesson 1: 0.9\nLesson 2: 0.1")
        return completion(json.dumps([lesson("look"), lesson("guess")]) if SUCCESS in prompt else "I cannot say.")

    with endpoint(reply) as server:
        writer = Writer(ExperienceWriterSettings(url=server.url, model="any", timeout_s=5, retries=0))
        found = writer.lessons([("Find it.", [WON, LOST]), ("Go.", [])])
    assert found == [[lesson("look")], []] and writer.failed == 2
