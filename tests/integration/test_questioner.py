"""Tasks that a model finds behind an endpoint: of what it says only what the environment was seen to grant is kept."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from test_teacher import completion, endpoint

from actors import environments, question_config, synthetic
from actors.config import DataSettings, EnvironmentSettings, SyntheticSettings
from actors.engines.teacher import TeacherBudget
from actors.environments.textcraft import Textcraft
from protocols.errors import SettingError
from redraft import recipe as recipes
from redraft.launch import questioner, questions

PROFILE = {
    "name": "a workshop",
    "background": "People craft items there.",
    "entities": [
        {
            "name": "item",
            "description": "something raw or crafted",
            "attrs": {"count": "how many are held"},
            "opts": [{"name": "craft", "description": "make it of others"}],
        }
    ],
    "task_preference": {"num_entities": 2, "num_opts": 3, "relation_difficulty": 3},
    "rubrics": ["Ask for one item."],
}
COMMANDS = [
    ["sign", 3, {"slabs": 6, "rod": 1}],
    ["slabs", 4, {"log": 1}],
    ["rod", 4, {"slabs": 2}],
    ["planks", 1, {"log": 1}],
]
RAW = ["log"]
SLABS = ["get 1 log", "craft 4 slabs using 1 log"]
ROD = [*SLABS, "craft 4 rod using 2 slabs"]


class Workshop(Textcraft):
    """textcraft with two goals of its own; it breaks on one action."""

    @classmethod
    def tasks(cls, data, split):
        return [{"id": f"{split}/{n}", "goal": "sign", "commands": COMMANDS, "tags": {}, "raw": RAW} for n in range(2)]

    def act(self, text):
        if text == "break":
            raise RuntimeError("it broke")
        return super().act(text)


def task(query: str, actions: list, sure=0.5) -> str:
    return f"<task>{json.dumps({'query': query, 'confidence': sure, 'action_sequence': actions})}</task>"


PROPOSED = [
    task("for the fence a rod craft Please", ROD, 0.4),  # like the next, of which it is less sure
    task("Please craft a rod for the fence", ["inventory", *ROD, "wait"], 0.9),
    task("Craft some slabs for me", [], 0.8),
    task("Craft the slabs that a floor needs", ["get 4 slabs"], 0.7),
    task("Make slabs until all breaks", ["break"]),
    task("Build a castle", SLABS),
    task("Craft planks, a goal that is for testing", ["get 1 log", "craft 1 planks using 1 log"]),
    "<task>not json</task>",
    task("A rod, surely", ROD, 7),
    task("Craft slabs out of one log", SLABS, 0.6),
]


def scripted(explored: list[str], summarised: list[str], lasts: int = 10**9):
    """Explores in two steps, then proposes all of the above; from its `lasts`-th answer on none can be used."""

    def reply(number, handler):
        dialogue = handler.asked["messages"]
        if number >= lasts:
            return 401, {}, b"{}"
        if dialogue[0]["role"] == "system":
            explored.append(json.dumps(dialogue))
            done = sum(message["role"] == "assistant" for message in dialogue)
            return completion(["Hm.", "I see.\n<action>get 2 log</action>", "<action>inventory</action>"][done])
        summarised.append(dialogue[0]["content"])
        return completion("Here you are.\n" + "\n".join(PROPOSED))

    return reply


def recipe(tmp_path, url: str, profile=PROFILE, **changes):
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    asked = {"url": url, "model": "any", "profile": str(tmp_path / "profile.yaml"), "turns": 3, "retries": 0}
    values = {
        "name": "asking",
        "steps": 1,
        "model": {"make": {}},
        "environment": {"name": f"{__file__}:Workshop"},
        "data": {"synthetic": {"path": str(tmp_path / "tasks.jsonl"), "questioner": asked | changes}},
        "rollout": {"name": "act", "turns": 8, "episodes": 2},
    }
    return recipes.build(values)


def test_only_what_was_proved_is_kept_and_all_else_is_counted(tmp_path):
    explored, summarised, said = [], [], []
    with endpoint(scripted(explored, summarised)) as server:
        counts = questions.make(recipe(tmp_path, server.url), tmp_path / "tasks.jsonl", 1, said.append)
    found = synthetic.read(tmp_path / "tasks.jsonl")
    assert [(one["goal"], one["query"], one["reference"]) for one in found] == [
        ("rod", "Please craft a rod for the fence", ["inventory", *ROD]),
        ("slabs", "Craft slabs out of one log", SLABS),
    ]
    assert (counts.explored, counts.kept, counts.proposed) == (1, 2, 6)
    assert (counts.empty, counts.alike, counts.infeasible, counts.broken) == (1, 1, 1, 1)
    assert counts.unusable == questioner.Unusable(unanswered=0, unparsed=2, unposed=2)
    assert said == ["1 of 1 explored, 2 tasks kept"] and "2 could not be read" in str(counts)


def test_who_makes_tasks_sees_the_steps_and_what_was_found_but_not_the_question(tmp_path):
    explored, summarised = [], []
    with endpoint(scripted(explored, summarised)) as server:
        questions.make(recipe(tmp_path, server.url), tmp_path / "tasks.jsonl", 4, lambda line: None)
    assert "Goal: craft sign" in explored[0] and "No action" not in explored[0]
    assert any(questioner.NO_ACTION in dialogue for dialogue in explored)
    assert all("Goal: craft" not in prompt and "sign" not in prompt for prompt in summarised)
    assert all("Action: get 2 log\nObservation: Got 2 log." in prompt for prompt in summarised)
    assert all("Observation: You have 2 log." in prompt and "Ask for one item." in prompt for prompt in summarised)
    known = [re.search(r"Found already:\n(.*?)\n\nThe steps", prompt, re.DOTALL)[1] for prompt in summarised]
    assert known[:2] == ["nothing"] * 2, "one exploration from each start at a time"
    assert sorted(known[2:]) == [
        "- Please craft a rod for the fence\n- Craft slabs out of one log",
        "nothing",
    ], "from the other start nothing new was found"


def test_a_task_whose_reference_fails_is_never_trained_on(tmp_path):
    with endpoint(scripted([], [])) as server:
        questions.make(recipe(tmp_path, server.url), tmp_path / "tasks.jsonl", 2, lambda line: None)
    settings = EnvironmentSettings(name=f"{__file__}:Workshop")
    data = DataSettings(synthetic=SyntheticSettings(path=str(tmp_path / "tasks.jsonl"), original=False))
    played = environments.tasks(settings, data, "train")
    assert len(played) == 2
    made = environments.make(settings)
    for one in played:
        made.reset(seed=0, options={"task": one})
        assert [made.step(action)[4]["success"] for action in one["reference"]] == [False] * (
            len(one["reference"]) - 1
        ) + [True]


def test_what_was_cut_off_goes_on_to_the_same_file(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    with endpoint(scripted([], [])) as server:
        questions.make(recipe(tmp_path, server.url), whole, 6, lambda line: None)
    with endpoint(scripted([], [], lasts=12)) as server:
        with pytest.raises(SettingError, match="refuses the key"):
            questions.make(recipe(tmp_path, server.url), parts, 6, lambda line: None)
    before = parts.read_text()
    assert before and json.loads((tmp_path / "parts.jsonl.progress").read_text())["explored"] == 2
    with endpoint(scripted([], [])) as server:
        asked = recipe(tmp_path, server.url, budget_tokens=10**6)
        counts = questions.make(asked, parts, 6, lambda line: None)
        assert counts.explored == 4 and parts.read_text() == whole.read_text()
        with pytest.raises(SettingError, match="another environment, options, seed or questioner"):
            questions.make(recipe(tmp_path, server.url, turns=4), parts, 8, lambda line: None)


def test_the_end_of_its_budget_is_said_and_what_was_kept_stays(tmp_path):
    with endpoint(scripted([], [])) as server:
        asked = recipe(tmp_path, server.url, budget_tokens=80, concurrency=1)
        with pytest.raises(TeacherBudget, match=r"data\.synthetic\.questioner\.budget_tokens: \d+ of 80"):
            questions.make(asked, tmp_path / "tasks.jsonl", 6, lambda line: None)
    assert len(synthetic.read(tmp_path / "tasks.jsonl")) == 2


def test_another_model_may_explore(tmp_path):
    explored, summarised, others = [], [], []
    with endpoint(scripted(explored, [])) as policy, endpoint(scripted(others, summarised)) as model:
        asked = recipe(tmp_path, model.url, explorer={"url": policy.url, "model": "own"})
        questions.make(asked, tmp_path / "tasks.jsonl", 1, lambda line: None)
    assert len(explored) == 3 and len(summarised) == 1 and not others


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": ""}, "name"),
        ({"entities": []}, "entities"),
        ({"entities": [{"name": "item"}]}, r"entities\.0\.description"),
        ({"task_preference": {"relation_difficulty": 4}}, r"task_preference\.relation_difficulty"),
        ({"rubric": []}, "rubric"),
    ],
)
def test_a_profile_that_is_none_is_refused_before_anything_is_asked(tmp_path, change, where):
    asked = recipe(tmp_path, "http://127.0.0.1:1", PROFILE | change)
    with pytest.raises(SettingError, match=rf"data\.synthetic\.questioner\.profile: {where} of "):
        questions.make(asked, tmp_path / "tasks.jsonl", 1, lambda line: None)
    with pytest.raises(SettingError, match="cannot be read"):
        question_config.profile(str(tmp_path / "none.yaml"))


def test_an_environment_that_cannot_judge_what_is_asked_for_is_refused(tmp_path):
    asked = recipe(tmp_path, "http://127.0.0.1:1")
    other = asked.model_copy(update={"environment": EnvironmentSettings(name="minicraft")})
    with pytest.raises(SettingError, match="posed"):
        questions.make(other, tmp_path / "tasks.jsonl", 1, lambda line: None)
