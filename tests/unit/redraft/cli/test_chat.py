"""A person who talks to a model: what each hears, and that a line from a pipe does as well as one that is typed."""

from __future__ import annotations

import asyncio
import io

import pytest
from support.made_run import CHATML, chat_tokenizer
from support.rollout_house import Speaker

from actors.config import SamplingSettings
from actors.rendering import Renderer
from protocols.errors import SettingError
from redraft.cli.chat import Talk, converse, play, task_of
from redraft.models.make import build_tokenizer
from redraft.recipe import build

STRIPS_THINKING = CHATML.replace("m.content +", "m.content.split('</think>')[-1].lstrip('\n') +")
TASK = {"id": "mine/1", "digits": "7128", "target": 12}


@pytest.fixture
def typed(monkeypatch):
    def type_in(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))

    return type_in


def talk(tokenizer, says, longest: int = 10_000, max_tokens: int = 64) -> Talk:
    renderer = Renderer(tokenizer, on_rewrite="new_root")
    return Talk(renderer, Speaker(tokenizer, says, longest=longest), SamplingSettings(max_tokens=max_tokens))


def recipe(**rollout):
    values = {"name": "r", "steps": 1, "model": {"make": {}}, "environment": {"name": "signs", "feedback": "residual"}}
    return build(values | {"rollout": {"name": "retry", "turns": 2, "episodes": 2} | rollout})


@pytest.mark.parametrize("template", [CHATML, STRIPS_THINKING], ids=["grows", "rewrites"])
def test_the_model_hears_the_whole_conversation_as_its_template_has_it_until_a_new_one(typed, capsys, template):
    tokenizer = chat_tokenizer(template)
    one = talk(tokenizer, lambda prompt: "fine")
    typed("hello", "and you", "/new", "hello", "/quit", "never heard")
    asyncio.run(converse(one))

    def rendered(*said: str) -> str:
        roles = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
        return tokenizer.apply_chat_template(roles, add_generation_prompt=True, tokenize=False)

    first, second, third = one.engine.prompts
    assert first == third == rendered("hello")
    assert second.replace("<eos>", "<|im_end|>") == rendered("hello", "fine", "and you")
    assert capsys.readouterr().out.splitlines() == [
        "model: fine",
        "model: fine",
        "redraft: a new conversation",
        "model: fine",
    ]


def test_what_no_longer_fits_is_said_and_a_new_conversation_goes_on(typed, capsys):
    one = talk(build_tokenizer("characters", 256), lambda prompt: "aaaa", longest=14, max_tokens=3)
    typed("one", "two", "three", "/new", "four")
    asyncio.run(converse(one))
    told = capsys.readouterr().out
    assert told.count("/new begins a new conversation") == 1 and told.count("model: aaa") == 3
    assert "cut at sampling.max_tokens=3" in told and one.engine.prompts[-1] == "four\n"


def answers(prompt: str) -> str:
    """Wrong at first, then right; a plan or a reflection where one is asked for."""
    if prompt.endswith(("plan:\n", "why:\n")):
        return "so"
    return "7-1-2+8" if "7+1-2-8" in prompt else "7+1-2-8"


def test_the_environment_asks_judges_and_is_heard_on_enter(typed, capsys):
    one = talk(build_tokenizer("characters", 256), answers)
    typed("", "", "/new", "", "9+9")
    asyncio.run(play(one, recipe(), TASK))
    told = capsys.readouterr().out
    assert told.startswith("environment: 7128>12")
    assert told.count("[not right, reward 0") == 2 and told.count("[right, reward 1") == 4, told
    assert one.engine.prompts[0] == "7128>12\n" and one.engine.prompts[1] == "7128>12\n7+1-2-8\n?-14\n"
    assert one.engine.prompts[-1].endswith("\n9+9\n"), "a person's words stand in for the environment's"


def test_a_plan_and_a_reflection_are_asked_for_as_in_training(typed, capsys):
    asked = {"plan": {"ask": "plan:\n", "answer": "go:\n"}, "reflect": True}
    one = talk(build_tokenizer("characters", 256), answers)
    typed("")
    asyncio.run(play(one, recipe(**asked, reflect_prompt="why:\n", retry_prompt="again:\n"), TASK))
    assert one.engine.prompts[-1] == "7128>12\nplan:\nso\ngo:\n7+1-2-8\n?-14\nwhy:\nso\nagain:\n"


def test_a_task_that_is_not_there_is_refused_with_some_that_are():
    with pytest.raises(SettingError, match="--task: signs has no task 'none'. Such as signs/"):
        task_of(recipe(), "none")
