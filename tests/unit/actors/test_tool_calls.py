"""Tools: the model's own template tells of them, its calls are answered as role tool, and no id is made twice."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import sums
from support.rollout_house import House
from support.sums import TASK, Counter, Sums, call
from support.tokenizers import OTHER_CALLS, THINKER, family, hermes, tiny
from support.waiting import deadline_s, until

from actors.config import EnvironmentSettings
from actors.door import EpisodeFailure, tool
from actors.messages import results
from actors.rendering import Renderer
from actors.rollout_config import ActSettings, SearchSettings
from actors.tool_config import ToolSource
from actors.tools import Offered, calls, described, functions
from actors.tools.calls import Call
from actors.tools.toolbox import Toolbox
from protocols.errors import SettingError
from protocols.turns import Role

ADD = Offered.of([functions.tool(sums.add).schema])
RENDERER = Renderer(hermes())
PIECES = [*"ab7 \n\té再<>|/", "<|im_end|>", "</tool_call>", "<tool_call>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def in_turn(*texts: str):
    left = iter(texts)
    return lambda prompt: next(left)


def played(*said: str, environment=Sums, settings=None, tools=("support.sums:add",), task=TASK, **named) -> House:
    """A group in which the model says these texts."""
    settings = settings or ActSettings(turns=len(said))
    return House(settings, in_turn(*said), environment, task, tokenizer=hermes(), tools=tools, max_tokens=400, **named)


def heard(house: House, place: int) -> str:
    return house.tokenizer.decode(house.turns[place].prompt)


# What a function says of itself ------------------------------------------------------------------------------------


def test_a_typed_function_with_a_docstring_is_described_by_both():
    made = functions.tool(sums.add).schema
    number = {"type": "integer"}
    properties = {"a": {"description": "the first"} | number, "b": {"description": "the second"} | number}
    assert made["function"] == {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": properties, "required": ["a", "b"]},
    }
    assert functions.tool(sums.divide).schema["function"]["parameters"]["properties"]["b"]["default"] == 1.0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("untyped", "parameter a of untyped has no type"),
        ("silent", "silent has no docstring"),
        ("TASK", "no function"),
    ],
)
def test_what_is_no_tool_is_refused_before_work_starts(name, problem):
    with pytest.raises(SettingError, match=rf"^environment\.tools\.0: .*{problem}"):
        Toolbox([ToolSource(function=f"support.sums:{name}")], 1.0, 1)
    with pytest.raises(SettingError, match=r"^environment\.tools: two tools are called 'add'"):
        Toolbox([ToolSource(function="support.sums:add")] * 2, 1.0, 1)


def test_a_description_in_openais_form_stands_in_place_of_types_and_docstring():
    schema = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object", "properties": {}}}}
    made = functions.tool(sums.silent, schema)
    assert made.name == "sum" and made.run({"a": 7}).value == 7
    with pytest.raises(ValueError, match="no `name`"):
        described("it", {"parameters": {}})


# Calls -------------------------------------------------------------------------------------------------------------


def test_calls_are_found_in_their_order_after_the_thoughts():
    text = f"<think>{call('no')}</think>Let me see. {call('add', a=1)}\n{call('look')}"
    assert calls.find(text) == [Call("add", {"a": 1}), Call("look")]
    assert calls.find("The answer is 42.") == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<tool_call>\n{'name': 'add'}\n</tool_call>", "not valid JSON"),
        ("<tool_call>[1]</tool_call>", "a call is"),
        ('<tool_call>{"name": "add", "arguments": "3"}</tool_call>', "must be an object"),
        ('<tool_call>{"name": "add"', "does not end with </tool_call>"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(text, wrong):
    (found,) = calls.find(text)
    assert wrong in found.wrong


@given(st.text(max_size=60) | st.builds("<tool_call>{}</tool_call>".format, st.text(max_size=40)))
def test_no_text_is_too_odd_to_look_for_calls_in(text):
    assert all(isinstance(one.wrong, str) for one in calls.find(text))


# Rendering ---------------------------------------------------------------------------------------------------------


@given(question=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3), before=TEXTS)
def test_what_tools_answer_is_appended_as_the_template_renders_the_whole_dialogue(question, answers, before):
    said = before.replace("<|im_end|>", "") + call("add", a=1, b=2)
    grown = [*RENDERER.first(question, tools=ADD), *RENDERER.answer(said)]
    for ended, kept in ((True, grown), (False, grown[:-1])):
        whole = RENDERER.first(results(answers), [(question, said)], ADD)
        assert [*kept, *RENDERER.next(results(answers), ended, ADD)] == list(whole)


def test_a_first_prompt_with_tools_is_what_transformers_makes_of_the_template():
    tokenizer, messages = hermes(), [{"role": "user", "content": "Wie viele Äpfel?"}]
    theirs = tokenizer.apply_chat_template(
        messages, tools=list(ADD.schemas), add_generation_prompt=True, return_dict=False
    )
    assert list(RENDERER.first("Wie viele Äpfel?", tools=ADD)) == theirs


def test_no_words_of_a_tool_become_control_tokens():
    end, begin = (RENDERER.tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<tool_call>"))
    plain, odd = (list(RENDERER.next(results([text]), True, ADD)) for text in ("x", "<|im_end|><tool_call>"))
    assert (odd.count(end), odd.count(begin)) == (plain.count(end), plain.count(begin)) == (1, 0)

    def told(text: str) -> list[int]:
        offered = Offered.of([described("it", {"name": "add", "description": text})])
        return list(RENDERER.first("q", tools=offered))

    assert told("<|im_end|>").count(end) == told("x").count(end)


def test_thoughts_stay_where_the_template_keeps_them_while_tools_are_called():
    renderer = Renderer(hermes(THINKER))
    assert renderer.rewrites and not renderer.anew("q", results(["3"]), ADD)
    thought = "<think>\nhm\n</think>\n\n" + call("add", a=1, b=2)
    grown = [*renderer.first("q", tools=ADD), *renderer.answer(thought), *renderer.next(results(["3"]), True, ADD)]
    assert grown == list(renderer.first(results(["3"]), [("q", thought)], ADD))
    with pytest.raises(SettingError, match=r"^model\.on_rewrite: .*rewrites"):
        renderer.anew("q", "again", ADD)


@pytest.mark.parametrize("name", ["chatml", "mistral", "qwen3", "channels"])
def test_a_template_without_tools_is_refused(name):
    with pytest.raises(SettingError, match=r"^environment\.tools: .*does not show tools.*model\.template\.path"):
        Renderer(family(name)).first("q", tools=ADD)


def test_a_template_that_calls_in_another_form_is_refused_and_so_is_none():
    with pytest.raises(SettingError, match=r"^environment\.tools: .*does not write calls as <tool_call>"):
        Renderer(hermes(OTHER_CALLS)).first("q", tools=ADD)
    with pytest.raises(SettingError, match=r"^environment\.tools: .*no chat template"):
        Renderer(tiny()).first("q", tools=ADD)


# Episodes ----------------------------------------------------------------------------------------------------------


def test_an_episode_calls_a_tool_hears_what_it_answers_and_ends_with_its_answer():
    house = played("I add. " + call("add", a=17, b=25), "42", "42")
    first, last = house.turns
    assert (first.parent, last.parent, first.role, last.terminated) == (-1, 0, Role.ACTION, True)
    assert (first.reward, last.reward, first.terminated, house.success) == (0.0, 1.0, False, 1.0)
    assert "Adds two numbers." in heard(house, 0) and "42" in heard(house, 1)
    assert [house.context(turn) for turn in house.turns] == house.prompts
    assert "refused" not in first.extra


def test_the_ids_of_an_episode_are_those_of_the_whole_dialogue():
    said = [call("add", a=17, b=25), "It is 42"]
    house = played(*said)
    first, last = house.turns
    ids = np.concatenate([first.prompt, first.response, last.prompt, last.response])
    whole = RENDERER.first(results(["42"]), [(TASK["question"], said[0])], ADD)
    assert list(ids[: len(whole)]) == list(whole) and np.isfinite(first.logprobs).all()


def test_several_calls_of_one_message_are_answered_in_their_order():
    house = played(call("add", a=1, b=2) + call("add", a=3, b=4), "42")
    assert heard(house, 1).index("\n3\n") < heard(house, 1).index("\n7\n")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (call("subtract", a=1), "there is no tool 'subtract'; there are: add, divide, later"),
        (call("add", a=1), "wrong arguments: b: Field required"),
        (call("add", a="x", b=1), "wrong arguments: a: Input should be a valid integer"),
        (call("divide", a=1, b=0), "ZeroDivisionError: float division by zero"),
        ("<tool_call>{</tool_call>", "the call is not valid JSON"),
    ],
)
def test_a_call_that_cannot_be_done_is_answered_with_the_error_and_counts_as_refused(said, error):
    house = played(said, "42", tools=[f"support.sums:{name}" for name in ("add", "divide", "later")])
    assert house.turns[0].extra["refused"] and f"Error: {error}" in heard(house, 1)
    assert house.success == 1.0 and not house.failures


def test_what_a_tool_returns_is_read_as_text_or_json():
    house = played(call("later", text="再"), "42", tools=["support.sums:later"])
    assert '{"said": "再"}' in heard(house, 1)
    assert (tool("t", np.float32(2)), tool("t", None), tool("t", [1, "a"])) == ("2.0", "null", '[1, "a"]')


@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("leaves", "raised", "SystemExit: 3"),
        ("dies", "raised", "tool dies ended its process"),
        ("odd", "returned", "tool odd returned <object"),
    ],
)
def test_a_tool_that_leaves_or_returns_nonsense_breaks_its_episode_off(name, kind, cause):
    house = played(call(name), tools=[f"support.sums:{name}"])
    (failure,) = house.failures
    assert failure.kind == kind and cause in str(failure)
    assert [turn.role for turn in house.turns] == [Role.ERROR] and house.success is None


def test_a_text_that_cannot_be_written_breaks_off_and_is_named():
    with pytest.raises(EpisodeFailure, match="^tool t returned a text with '.ud800'"):
        tool("t", "\ud800")


def test_a_tool_that_takes_too_long_breaks_its_episode_off_and_is_killed(tmp_path):
    limit_s = deadline_s(1)
    house = played(call("loops", file=str(tmp_path / "pid")), tools=["support.sums:loops"], limit_s=limit_s)
    (failure,) = house.failures
    assert (failure.kind, str(failure)) == (
        "hung",
        f"tool loops: no answer within environment.time_limit_s={limit_s:g}",
    )
    pid = int((tmp_path / "pid").read_text())
    assert pid != os.getpid()
    until(lambda: not psutil.pid_exists(pid), "the process of the tool has gone")


def test_an_environment_offers_tools_of_its_own():
    said = [call("up", by=9), call("up", by=2), "done", call("up", by=1) + call("look"), "done"]
    house = played(*said, environment=Counter, tools=[], task={"id": "counter/0"})
    assert "Counts up, by 2 at most." in heard(house, 0)
    assert "Error: ValueError: too many" in heard(house, 1) and "now 2" in heard(house, 2)
    assert "not yet" in heard(house, 3) and '{"count": 3}' in heard(house, 4)
    assert [turn.reward for turn in house.turns] == [0, 0, 0, 0, 1] and house.turns[-1].terminated


def test_a_search_goes_back_to_before_a_tool_of_the_environment_was_used():
    said = {"Count": call("up", by=1), "now 1": call("up", by=2), "now 3": "done", "not yet": "done"}
    count = iter(range(100))

    def model(prompt: str) -> str:
        last = prompt.rpartition("<|im_start|>user")[2]
        if next(count) % 3 == 2:
            return "done"
        return next((text for key, text in reversed(said.items()) if key in last), "done")

    settings = SearchSettings(turns=4, simulations=4, expansions=3)
    house = House(settings, model, Counter, {"id": "counter/0"}, tokenizer=hermes(), max_tokens=400)
    assert not house.failures and house.success and house.success > 0
    for turn in (turn for turn in house.turns if turn.episode == 0):
        told = house.context(turn)
        ups = told.count('"by": 1}') + 2 * told.count('"by": 2}')
        assert (f"now {ups}" in told) == (ups > 0), "each branch counts from its own state"


@pytest.mark.parametrize("splice", ["replayed", "verbatim"])
def test_a_search_corrects_a_call_that_was_refused_by_words_and_the_call_that_was_right(splice):
    wrong, right = call("divide", a=1, b=0), call("add", a=17, b=25)

    def model(prompt: str) -> str:
        if "<tool_response>" not in prompt:
            return next(first)
        return "42" if "\n42\n" in prompt else "41"

    first = iter([wrong, right, wrong, right])
    settings = SearchSettings(turns=3, simulations=3, expansions=2, pairs=1, splice=splice)
    tools = EnvironmentSettings(name="x", tools=["support.sums:add", "support.sums:divide"]).tools
    house = House(settings, model, Sums, TASK, tokenizer=hermes(), max_tokens=400, tools=tools)
    revision, *after = [turn for turn in house.turns if turn.episode == 1]
    assert revision.role is Role.REVISION and house.text(revision).endswith(right + "<|im_end|>")
    assert house.text(revision).startswith("Thought: ") and "wait" not in house.text(revision)
    assert "Error: ZeroDivisionError" in house.context(revision)
    assert [house.text(turn) for turn in after] == ["42<|im_end|>"] and after[0].reward == 1.0


def test_tools_that_an_environment_wrongly_offers_are_named():
    class Wrong(Counter):
        def tools(self):
            return [sums.untyped]

    with pytest.raises(SettingError, match=r"^environment\.name: Wrong\.tools\(\): parameter a of untyped has no type"):
        Wrong().own_tools  # noqa: B018
    with pytest.raises(SettingError, match="parameter a of untyped has no type"):  # every episode would end so
        played("x", environment=partial(Wrong), tools=[])
