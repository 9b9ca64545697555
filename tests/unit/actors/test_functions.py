"""What `functions` promises: every allowed call is right, every other one is wrong, any text is answered at once."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments import files, functions, functions_parse
from protocols.errors import SettingError

SETTINGS = EnvironmentSettings(name="functions")
LIMIT_S = 0.010  # of computing, for one answer


def judge(task: dict, calls) -> float:
    text = calls if isinstance(calls, str) else json.dumps(calls)
    return environments.make(SETTINGS).judge(task, text).reward


@pytest.fixture(scope="module")
def cases(data_folder):
    data = DataSettings(path=str(data_folder("bfcl")))
    return {split: environments.tasks(SETTINGS, data, split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def every(cases):
    return [*cases["train"], *cases["test"]]


# --- answers made of the data


def first(allowed):
    """The value that an allowed one stands for: a map of it holds lists of allowed values again."""
    if isinstance(allowed, dict):
        return {name: first(values[0]) for name, values in allowed.items() if values[0] != ""}
    return [first(one) for one in allowed] if isinstance(allowed, list) else allowed


def solved(task: dict) -> list[dict]:
    """The calls of a task with the first allowed value of each argument; "" leaves it out where that may be done."""
    calls = []
    for call in task["calls"]:
        ((name, allowed),) = call.items()
        schema = next(f["parameters"] for f in task["functions"] if f["name"] == name)
        arguments = {}
        for argument, values in allowed.items():
            needed = argument in schema.get("required", ())
            value = next((v for v in values if v != ""), values[0]) if needed else values[0]
            if value != "" or needed:
                arguments[argument] = first(value)
        calls.append({"name": name, "arguments": arguments})
    return calls


def other(value):
    """A value of the same type that no list of allowed values holds."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 10_007
        case str():
            return value + " zzz"
        case list():
            return [other(value[0]), *value[1:]] if value else [1]
        case dict():
            name = next(iter(value))
            return value | {name: other(value[name])}
    return "zzz"


def test_every_case_takes_its_first_allowed_values(every):
    assert len(every) == 1040
    assert Counter(functions.KINDS[task["level"]] for task in every) == {
        "simple_python": 400,
        "multiple": 200,
        "parallel": 200,
        "irrelevance": 240,
    }
    assert [task["id"] for task in every if judge(task, solved(task)) != 1] == []


def test_every_case_refuses_a_changed_argument(every):
    changed, taken = 0, []
    for task in every:
        calls = solved(task)
        for n, call in enumerate(calls):
            for argument, value in call["arguments"].items():
                allowed = task["calls"][n][call["name"]][argument]
                if isinstance(value, bool) and (not value) in allowed:
                    continue  # both are allowed
                wrong = copy.deepcopy(calls)
                wrong[n]["arguments"][argument] = other(value)
                changed += 1
                if judge(task, wrong) != 0:
                    taken.append((task["id"], argument))
    print(f"functions: {changed} changed arguments refused")
    assert not taken and changed > 2500


def test_every_case_refuses_a_call_too_few_too_many_or_twice_and_a_wrong_name(every):
    foreign, alike = {"name": "no_such_function", "arguments": {}}, set()
    for task in every:
        calls = solved(task)
        assert judge(task, [*calls, foreign]) == 0, task["id"]
        assert judge(task, [*calls, calls[0]] if calls else [foreign, foreign]) == 0, task["id"]
        for n in range(len(calls)):
            rest = calls[:n] + calls[n + 1 :]
            assert judge(task, rest) == 0, task["id"]
            assert judge(task, [*rest, calls[n] | {"name": calls[n]["name"] + "_"}]) == 0, task["id"]
            twice = next((call for call in calls if call != calls[n]), None)
            if twice is not None and judge(task, [*rest, twice]) != 0:
                alike.add(task["id"])
    assert alike == {"functions/parallel_116"}  # its genotypes Aa and aa differ in case alone, which does not count


def test_every_case_refuses_a_required_argument_left_out_and_an_unknown_one(every):
    for task in every:
        calls = solved(task)
        for n, call in enumerate(calls):
            wrong = copy.deepcopy(calls)
            wrong[n]["arguments"]["zzz"] = 1
            assert judge(task, wrong) == 0, task["id"]
            schema = next(f["parameters"] for f in task["functions"] if f["name"] == call["name"])
            for argument in schema.get("required", ()):
                wrong = copy.deepcopy(calls)
                del wrong[n]["arguments"][argument]
                assert judge(task, wrong) == 0, task["id"]


def test_calls_may_come_in_any_order(every):
    for task in every:
        calls = solved(task)
        assert judge(task, calls[::-1]) == judge(task, calls[1:] + calls[:1]) == 1, task["id"]
        answers = {environments.make(SETTINGS).judge(task, json.dumps(order)).answer for order in (calls, calls[::-1])}
        assert len(answers) == 1


# --- what an allowed value takes


def case(allowed: dict, properties: dict, required: tuple = ()) -> dict:
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    names = [{"name": "f", "description": "", "parameters": parameters}]
    return {"id": "", "request": "", "functions": names, "calls": [{"f": allowed}], "level": 0}


@pytest.mark.parametrize(
    ("kind", "allowed", "right", "wrong"),
    [
        ("integer", [5], [5], [5.0, "5", True, None, [5]]),
        ("integer", [1], [1], [True, 1.0]),
        ("float", [5.0], [5, 5.0], ["5.0", True, 5.1]),
        ("float", [0], [0, 0.0], [False, ""]),
        ("float", ["", None], [None], [0, "None"]),
        ("boolean", [True], [True], [1, "true", "True", False]),
        ("string", ["New York, NY"], ["new york NY", "New-York,NY", "NEW YORK, NY."], ["New York", 5, None]),
        ("string", ["it's"], ['it"s'], ["its"]),
        ("string", ["NYC", "New York"], ["nyc", "new york"], ["NYC New York", ""]),
        ("array", [["a", "b"], ["c"]], [["A", "b"], ["c"]], [["b", "a"], ["a"], [], "a", ["a", "b", "c"]]),
        ("array", [[1, 2]], [[1, 2]], [[1, True], [2, 1], [1.5, 2]]),
        ("dict", [{"a": [1, 2], "b": ["x", ""]}], [{"a": 2, "b": "X"}, {"a": 1}], [{"b": "x"}, {"a": 1, "c": 1}, [1]]),
        ("array", [[{"a": [1, 2]}]], [[{"a": 2}]], [[{"a": 3}], [{}], {"a": 1}, [[1]]]),
        ("dict", [{"a": [["x", "y"]]}], [{"a": ["x", "y"]}], [{"a": "x"}, {"a": [["x", "y"]]}]),
    ],
)
def test_a_value_is_compared_by_its_type(kind, allowed, right, wrong):
    task = case({"v": allowed}, {"v": {"type": kind}})
    assert [judge(task, [{"name": "f", "arguments": {"v": value}}]) for value in right] == [1] * len(right)
    assert [judge(task, [{"name": "f", "arguments": {"v": value}}]) for value in wrong] == [0] * len(wrong)


@pytest.mark.parametrize(
    ("item", "inner", "reward"), [(1, {"a": 1}, 1), (1.0, {"a": 1}, 0), (1, {"a": 1.0}, 0), (1, {}, 0)]
)
def test_the_declared_types_of_items_and_of_inner_names_count(item, inner, reward):
    whole = {"type": "integer"}
    properties = {
        "v": {"type": "array", "items": whole},
        "w": {"type": "dict", "properties": {"a": whole}, "required": ["a"]},
    }
    task = case({"v": [[1]], "w": [{"a": [1, ""]}]}, properties)
    assert judge(task, [{"name": "f", "arguments": {"v": [item], "w": inner}}]) == reward


def test_an_argument_may_be_left_out_where_the_data_says_so_and_it_is_not_required():
    optional, required = (case({"v": [5, ""]}, {"v": {"type": "integer"}}, names) for names in ((), ("v",)))
    nothing = [{"name": "f", "arguments": {}}]
    assert (judge(optional, nothing), judge(required, nothing)) == (1, 0)


@pytest.mark.parametrize(("kind", "value"), [("integer", 5), ("boolean", True), ("array", [1]), ("float", 2.5)])
def test_an_argument_that_may_be_left_out_takes_no_empty_text_for_its_value(kind, value):
    task = case({"v": [value, ""]}, {"v": {"type": kind}})
    said = {told: judge(task, [{"name": "f", "arguments": {"v": told}}]) for told in ("", "-", " ")}
    assert said == {"": 0, "-": 0, " ": 0}
    text = case({"v": ["x", ""]}, {"v": {"type": "string"}})
    assert [judge(text, [{"name": "f", "arguments": {"v": told}}]) for told in ("", "x", "-")] == [1, 1, 0]


def test_calls_are_paired_so_that_all_find_a_partner():
    task = case({"v": [1, 2]}, {"v": {"type": "integer"}})
    task["calls"].append({"f": {"v": [1]}})  # the first call alone fits both
    pairs = {(1, 2): 1, (2, 1): 1, (1, 1): 1, (2, 2): 0}
    for values, reward in pairs.items():
        assert judge(task, [{"name": "f", "arguments": {"v": value}} for value in values]) == reward


# --- parsing

CALL = case({"v": [1]}, {"v": {"type": "integer"}})
RIGHT = '[{"name": "f", "arguments": {"v": 1}}]'


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f"  {RIGHT}\n",
        f"```json\n{RIGHT}\n```",
        f"```JSON\n{RIGHT}\n```",
        f"I think ```[]``` no:\n```\n{RIGHT}```\nThere.",
        f"<think>[1] or [2]?\n[3]</think>\n{RIGHT}",
        f"I call f with [1], since\n[2] is wrong.\n{RIGHT}",
        f"The calls:\n{RIGHT.replace(', ', ',' + chr(10))}\n",
        f"\ufeff{RIGHT}",
        f"{RIGHT}<|im_end|>",
        f"{RIGHT}</s>\n",
        RIGHT[1:-1],
        RIGHT.replace('{"v": 1}', json.dumps('{"v": 1}')),
    ],
)
def test_a_fence_and_what_stands_around_it_are_left_out(text):
    assert judge(CALL, text) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f(v=1)",
        f"Here: {RIGHT}",
        RIGHT[:-1],
        RIGHT + RIGHT,
        RIGHT.replace("1", "NaN"),
        RIGHT.replace("1", "-Infinity"),
        RIGHT.replace("1", "1e999"),
        RIGHT.replace("1", '1, "v": 1'),
        RIGHT.replace('"', "'"),
        RIGHT.replace("1", "9" * 5000),
        RIGHT.replace("1", "[" * 20 + "]" * 20),
        "[" * 3000,
        '{"a":' * 600,
        "[" * 100_000,
        '{"a":' * 20_000,
        "```" * 50_000,
        "``` " + " " * 100_000,
        RIGHT + " " * 100_000,
    ],
)
def test_what_is_no_guarded_json_costs_a_point(text):
    verdict = environments.make(SETTINGS).judge(CALL, text)
    assert (verdict.reward, verdict.answer) == (-1, None)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "1",
        '"f"',
        '{"v": 1}',
        "[1]",
        "[[]]",
        '[{"name": "f"}]',
        '[{"name": "f", "arguments": [1]}]',
        '[{"name": ["f"], "arguments": {"v": 1}}]',
        '[{"name": "f", "arguments": {"v": 1}, "id": 1}]',
        RIGHT.replace("1", "9" * 3000),
        RIGHT.replace("1", '"\\ud800"'),
    ],
)
def test_json_of_another_shape_is_wrong_and_has_a_canonical_form(text):
    verdict = environments.make(SETTINGS).judge(CALL, text)
    assert verdict.reward == 0
    assert json.loads(verdict.answer) == json.loads(text) and verdict.answer.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["name", "arguments", "v", "a"]) | st.text(), inner)
    ),
)
PIECES = st.sampled_from([*'[]{}:,"\\ 19.eE-\n', "```", '{"name":"f","arguments":', '"v":', "NaN", "null", "[[[[[[[["])
CALLS = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "arguments": JSON}), max_size=9)


@settings(deadline=None, max_examples=300)
@given(
    st.text() | JSON.map(json.dumps) | CALLS.map(json.dumps) | st.lists(PIECES, max_size=400).map("".join),
    st.integers(min_value=0),
)
def test_any_text_is_answered_at_once(every, text, n):
    environment, task = environments.make(SETTINGS), every[n % len(every)]
    seconds = []
    for _ in range(3):
        begun = time.thread_time()
        verdict = environment.judge(task, text)
        seconds.append(time.thread_time() - begun)
    assert min(seconds) < LIMIT_S
    assert verdict.reward in (-1, 0, 1) and (verdict.answer is None) == (verdict.reward == -1)


@pytest.mark.parametrize("value", ["x" * 440, "." * 440, "\u00e9'" * 30])
def test_the_widest_answers_are_judged_at_once(every, value):
    task = max(every, key=lambda task: len(json.dumps(task["calls"])))
    ((name, arguments),) = task["calls"][0].items()
    wide = [{"name": name, "arguments": dict.fromkeys(arguments, value)} for _ in task["calls"]]
    environment, text = environments.make(SETTINGS), json.dumps(wide)
    begun = time.thread_time()
    assert environment.judge(task, text).reward == (-1 if len(text) > functions_parse.LONGEST else 0)
    assert time.thread_time() - begun < LIMIT_S


# --- tasks


def test_no_request_of_the_test_split_is_one_of_training(cases):
    asked = {split: {functions._asked(task) for task in cases[split]} for split in cases}
    assert asked["train"].isdisjoint(asked["test"]) and len(asked["test"]) > 100


@pytest.mark.parametrize("thoughts", ["<think>{long}</think>\n", "{long}</think>\n", "{long}</thinking>"])
def test_what_a_model_thought_before_does_not_count(cases, thoughts):
    task = next(task for task in cases["train"] if task["calls"])
    right = json.dumps(solved(task))
    assert judge(task, right) == judge(task, thoughts.format(long="x" * 5000) + right) == 1


def test_a_fifth_is_held_out_and_the_first_tasks_are_of_every_kind(cases):
    train, test = cases["train"], cases["test"]
    assert not {task["id"] for task in train} & {task["id"] for task in test}
    assert len({task["id"] for task in (*train, *test)}) == 1040 and 0.15 < len(test) / 1040 < 0.25
    assert {task["level"] for task in train[:40]} == {task["level"] for task in test[:40]} == set(range(4))
    assert msgpack.unpackb(msgpack.packb(train)) == train


def test_the_question_holds_the_request_and_every_function(cases):
    environment = environments.make(SETTINGS)
    for task in cases["test"]:
        question, _ = environment.reset(seed=0, options={"task": task})
        assert task["request"] in question and all(json.dumps(f) in question for f in task["functions"])


def test_a_folder_that_lacks_a_file_or_an_answer_names_data_path(tmp_path, data_folder):
    (tmp_path / "possible_answer").mkdir()
    for kind in functions.KINDS:
        for folder in ("", "possible_answer") if kind != "irrelevance" else ("",):
            file = f"{folder}/BFCL_v4_{kind}.json".lstrip("/")
            (tmp_path / file).write_text((data_folder("bfcl") / file).read_text())
    data = DataSettings(path=str(tmp_path))
    assert environments.tasks(SETTINGS, data, "test")
    answers = tmp_path / "possible_answer" / "BFCL_v4_multiple.json"
    rows = files.rows(answers)
    for bad in (rows[1:], [rows[0] | {"ground_truth": [{"nothing": {}}]}, *rows[1:]], [rows[0] | {"ground_truth": 1}]):
        answers.write_text("\n".join(map(json.dumps, bad)))
        with pytest.raises(SettingError, match=r"^data\.path"):
            environments.tasks(SETTINGS, data, "test")
    for missing in (DataSettings(path=str(tmp_path / "none")), DataSettings()):
        with pytest.raises(SettingError, match=r"^data\.path"):
            environments.tasks(SETTINGS, missing, "train")
