"""Rows of one's own: read as people have them, judged by a function of theirs or by name, and divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.rollout_house import House

from actors import environments
from actors.config import DataSettings, EnvironmentSettings, MixedEnvironment
from actors.door import EpisodeFailure
from actors.environments.base import Cut
from actors.rollout_config import ActSettings, AttemptSettings, RetrySettings
from protocols.errors import SettingError
from protocols.turns import Role
from redraft.models.make import build_tokenizer

QUESTION = {"question": "2 + 2?", "answer": "4"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**options) -> EnvironmentSettings:
    given = {"reward": "exact", "prompt": "question"} | options
    return EnvironmentSettings(name="rows", options=given)


def saved(rows: list[dict], file: str = "train.jsonl") -> DataSettings:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(path=file)


def tasks(data: DataSettings, split: str = "train", **options) -> list[dict]:
    return list(environments.tasks(settings(**options), data, split))


def refusal(data: DataSettings, **options) -> str:
    with pytest.raises(SettingError) as caught:
        tasks(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def played(text: str, row: dict | None = None, **options) -> tuple:
    """What `step` returns for an answer to the only row."""
    environment = environments.make(settings(**options))
    [task] = tasks(DataSettings(path="train.jsonl", test="train.jsonl") if row is None else both(row), **options)
    environment.reset(seed=0, options={"task": task})
    return environment.step(text)


def both(row: dict) -> DataSettings:
    saved([row])
    return DataSettings(path="train.jsonl", test="train.jsonl")


def house_of(*arguments) -> House:
    return House(*arguments, tokenizer=build_tokenizer("bytes", 4096))


def mine(source: str) -> None:
    Path("mine.py").write_text(source)


# Reading.


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + json.dumps(QUESTION).encode() + b"\r\n\r\n \n",
        json.dumps(QUESTION).encode(),
        json.dumps(QUESTION | {"note": "a\u2028b"}, ensure_ascii=False).encode() + b"\n",
    ],
    ids=["BOM, CRLF, blank lines", "no last line end", "U+2028"],
)
def test_json_lines_are_read_as_people_have_them(folder: Path, raw: bytes):
    (folder / "train.jsonl").write_bytes(raw)
    [task] = tasks(DataSettings(path="train.jsonl", test="train.jsonl"))
    assert (task["question"], task["answer"]) == ("2 + 2?", "4")


def test_parquet_folders_and_json_lists_hold_the_same_tasks(folder: Path):
    import pyarrow
    import pyarrow.parquet

    rows = [QUESTION | {"question": f"{n}?"} for n in range(10)]
    (folder / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "set" / "train-0-of-1.parquet")
    (folder / "rows.json").write_text(json.dumps(rows))
    saved(rows)
    found = [
        sorted(task["id"] for split in ("train", "test") for task in tasks(DataSettings(path=path), split))
        for path in ("set", "rows.json", "train.jsonl")
    ]
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 10


def test_values_that_no_json_has_are_texts_and_bytes_are_left_out(folder: Path):
    import datetime
    from decimal import Decimal

    import pyarrow
    import pyarrow.parquet

    day = datetime.datetime(2026, 1, 2)
    row = QUESTION | {"when": day, "cost": Decimal("1.50"), "image": {"bytes": b"\x00"}, "png": b"\x00"}
    del row["image"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "t.parquet")
    [task] = tasks(DataSettings(path="t.parquet", test="t.parquet"))
    assert task["row"] == QUESTION | {"when": "2026-01-02T00:00:00", "cost": "1.50"}


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (['{"question": "a", "answer": "b"}', "{bad"], {}, ["train.jsonl", "line 2"]),
        (["[1]"], {}, ["line 1", "no map"]),
        (['{"prompt": "a", "answer": "b"}'], {}, ["line 1", "'question'", "prompt, answer", "options.prompt"]),
        (['{"question": "a", "answer": null}'], {}, ["line 1", "'answer'", "empty"]),
        (['{"question": " ", "answer": "b"}'], {}, ["line 1", "'question'", "is empty"]),
        (['{"question": [{"role": "robot", "content": "x"}], "answer": "b"}'], {}, ["line 1", "'question'", "role"]),
        (['{"question": "a", "answer": "x"}'], {"reward": "number"}, ["line 1", "'answer'", "no number"]),
        (['{"question": "a", "answer": "x y"}'], {"reward": "choice"}, ["line 1", "'answer'", "letter"]),
        (['{"question": "a", "answer": {"type": 3}}'], {"reward": "json_schema"}, ["line 1", "JSON schema"]),
        (['{"question": "a", "answer": "b\\ud800"}'], {}, ["line 1", "'answer'", "half of a character"]),
        (['{"question": "a", "answer": "b", "n": 1%s}' % ("0" * 30)], {}, ["line 1", "'n'", "64 bits"]),
        (['{"question": "a", "answer": "b", "key": 1}'] * 2, {"id": "key"}, ["line 2", "'key'", "line 1"]),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_column(
    folder: Path, lines: list[str], options: dict, said: list[str]
):
    (folder / "train.jsonl").write_text("\n".join(lines))
    message = refusal(DataSettings(path="train.jsonl", test="train.jsonl"), **options)
    assert all(part in message for part in ["data.path", "train.jsonl", *said]), message


def test_what_is_not_utf_8_is_told_with_its_line(folder: Path):
    (folder / "train.jsonl").write_bytes(b'{"question": "a", "answer": "b"}\n{"question": "\xe9"}\n')
    assert "line 2" in (said := refusal(DataSettings(path="train.jsonl"))) and "utf-8" in said
    assert "there" in refusal(DataSettings(path="none.jsonl")) or "cannot be read" in refusal(
        DataSettings(path="none.jsonl")
    )


def test_files_divide_and_else_a_fifth_is_held_out_by_the_question_in_whatever_order(folder: Path):
    rows = [{"question": f"{n}?", "answer": str(n)} for n in range(200)]
    data = saved(rows)
    train, test = (tasks(data, split) for split in ("train", "test"))
    assert len(train) + len(test) == 200 and 20 <= len(test) <= 60
    again = saved(rows[::-1])
    assert {task["id"] for task in tasks(again, "test")} == {task["id"] for task in test}
    saved([QUESTION], "apart.jsonl")
    apart = DataSettings(path="train.jsonl", test="apart.jsonl")
    assert len(tasks(apart)) == 200 and [task["question"] for task in tasks(apart, "test")] == ["2 + 2?"]


def test_of_few_rows_one_is_held_out_and_one_that_is_there_twice_is_two_tasks_of_one_split(folder: Path):
    data = saved([QUESTION, QUESTION, {"question": "1?", "answer": "1"}])
    train, test = (tasks(data, split) for split in ("train", "test"))
    assert train and test and len({task["id"] for task in [*train, *test]}) == 3
    assert not {task["question"] for task in train} & {task["question"] for task in test}


@pytest.mark.parametrize(
    "rows",
    [[{"question": "Guess my number.", "number": n} for n in range(30)], [{"question": "Guess my number."}] * 30],
    ids=["other columns", "nothing else"],
)
def test_rows_that_all_ask_the_same_are_divided_by_what_else_they_hold_or_by_their_places(folder: Path, rows: list):
    data = saved(rows)
    train, test = (tasks(data, split, reward="mine.py:score") for split in ("train", "test"))
    assert len({task["id"] for task in [*train, *test]}) == 30 and 2 <= len(test) <= 12
    numbers = [{json.dumps(task["row"].get("number", task["id"])) for task in found} for found in (train, test)]
    assert not numbers[0] & numbers[1]


def test_a_prompt_is_a_column_a_template_or_messages_and_the_system_prompt_goes_before_it(folder: Path):
    row = {"q": "Who?", "options": "A or B", "answer": "A"}
    [task] = tasks(both(row), prompt="{q} Choose {options}.", system="Be short.")
    assert task["question"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who? Choose A or B."},
    ]
    said = [{"role": "system", "content": "Own."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    [task] = tasks(both({"q": said, "answer": "A"}), prompt="q", system="Be short.")
    assert task["question"] == [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]


def test_data_settings_that_an_environment_does_not_read_are_refused():
    with pytest.raises(SettingError, match="data.test"):
        environments.tasks(EnvironmentSettings(name="signs"), DataSettings(test="x.jsonl"), "train")


# Judges by name.


@pytest.mark.parametrize(
    ("reward", "wanted", "right", "wrong"),
    [
        (
            "exact",
            "New York",
            ["New  York\n", "so #### New York", r"\boxed{New York}", "<think>Paris?</think> New York"],
            ["new york", "York", ""],
        ),
        ("number", "1,234.5", [r"\boxed{1234.50}", "it is 1,234.5 km"], ["1234", "none", r"\boxed{1} 1234.5"]),
        ("number", 4, ["2 + 2 = 4", "4.0", "So:\n- 4", "<think>5</think>\n4"], ["5", "-4", "<think>4</think> none"]),
        ("number", "6.02e23", ["6.02e23", "602e21"], ["23", "1.5e23"]),
        ("number", 1e-05, ["0.00001"], ["5", "1"]),
        ("number", 42, ["#### Step 2\n5 + 37 = 42", "#### 42\nIt fits."], ["#### Step 42\n5", "#### 41\n42"]),
        ("math", r"\frac{1}{2}", [r"\boxed{0.5}", "1/2"], [r"\boxed{2}", ""]),
        (
            "choice",
            "B",
            [
                *("B", "(B)", "The answer is B.", r"\boxed{\text{B}}", "A is wrong. Answer: (B)", "The answer is: B"),
                *(r"\boxed{Answer: B}", "#### The answer is B", "#### Analysis\nA is wrong. The answer is (B)"),
                *(r"\boxed{B) two}", "#### B: two", "Answer: I think it is B", r"\boxed{Two} The answer is B since"),
            ],
            ["A", "BB", "", r"\boxed{Because} of A", r"\boxed{Answer: A}", "#### The bigger"],
        ),
        ("choice", 2, ["C"], ["B"]),
        (
            "json_schema",
            {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
            ['{"name": "x"}', 'Here:\n```json\n{"name": "x"}\n```'],
            ['{"name": 1}', "[]", "name"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_judge_by_name_pays_for_right_answers_alone(folder: Path, reward, wanted, right, wrong):
    row = {"question": "?", "answer": wanted}
    for text, worth in [*((text, 1) for text in right), *((text, 0) for text in wrong)]:
        _, got, _, _, info = played(text, row, reward=reward)
        assert (got, info["success"]) == (worth, bool(worth)), text
    assert played(Cut(right[0]), row, reward=reward)[1] == 0, "a cut answer counts as right"


def test_a_row_of_several_numbers_is_no_right_answer_of_judge_number(folder: Path):
    with pytest.raises(SettingError, match="column 'answer' is no number"):
        played("25", {"question": "?", "answer": "25 cm^2"}, reward="number")


# A function of one's own.


def test_no_more_answers_are_judged_at_once_than_processes_run_the_reward_so_that_none_waits_for_one_in_its_own_time():
    settings = MixedEnvironment(name="rows", options={"reward": "mine.py:score", "processes": 3})
    assert environments.threads(settings) == 3
    assert environments.threads(settings.model_copy(update={"options": {"reward": "exact"}})) == settings.threads


def test_a_function_gets_the_columns_that_it_takes_and_may_be_async(folder: Path):
    mine(
        "async def score(said, answer, cut):\n    return 0.5 if cut else float(said == answer)\n"
        "def all(text, **row):\n    return len(row)\n"
    )
    row = QUESTION | {"other": 1}
    assert played("4", row, reward="mine.py:score")[1] == 1
    assert played(Cut("4"), row, reward="mine.py:score")[1] == 0.5
    assert played("4", row, reward="mine.py:all")[1] == 3


def test_named_parts_are_summed_told_and_go_into_the_turn(folder: Path):
    mine(
        "def score(text, answer):\n"
        "    short = len(text) < 9\n"
        "    return {'right': float(answer in text), 'short': .25 * short, 'no': None, 'success': answer in text,\n"
        "            'feedback': 'Too long.'}\n"
    )
    [task] = tasks(both(QUESTION), reward="mine.py:score")
    for text, reward in (("4", 1.25), ("It is 4, I am sure", 1.0), ("5", 0.25)):
        house = house_of(
            RetrySettings(turns=2, episodes=1, stop_at_success=True),
            lambda prompt, text=text: text,
            lambda: environments.make(settings(reward="mine.py:score").model_copy(update={"feedback": "residual"})),
            task,
        )
        first = house.turns[0]
        assert first.reward == reward and first.extra["success"] == ("4" in text)
        assert first.extra["parts"] == {"right": float("4" in text), "short": 0.25 * (len(text) < 9)}
    assert "Too long." in house.tokenizer.decode(house.turns[1].prompt)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("return None", "returned", "does not judge"),
        ("return float('nan')", "returned", "not finite"),
        ("return [1, 2]", "returned", "neither a number nor a map"),
        ("return {'a b': 1}", "returned", "a part"),
        ("return {}", "returned", "without a reward"),
        ("raise ValueError('no such word')", "raised", "no such word"),
        ("raise SystemExit", "raised", "SystemExit"),
        ("import os; os._exit(3)", "raised", "ended its process"),
        ("while True: pass", "hung", "limit_s=0.5"),
        ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", "hung", "limit_s=0.5"),
    ],
)
def test_a_function_that_misbehaves_costs_its_episode_alone_and_the_next_is_scored(folder: Path, body, kind, said):
    mine(f"def score(text, answer):\n    if text == 'bad':\n        {body}\n    return 1.0\n")
    options = {"reward": "mine.py:score", "limit_s": 0.5, "processes": 1}
    [task] = tasks(both(QUESTION), **options)
    words = iter(["bad", "good"])
    house = house_of(
        AttemptSettings(episodes=2), lambda prompt: next(words), lambda: environments.make(settings(**options)), task
    )
    [broken] = [turn for turn in house.turns if turn.role is Role.ERROR]
    assert broken.extra["kind"] == kind and said in broken.extra["error"]
    assert [turn.reward for turn in house.turns if turn.role is Role.ATTEMPT] == [1.0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ValueError('at once')", "at once"),
        ("score = 3", "no function"),
        ("def other(): pass", "score"),
        ("def score(): pass", "takes no text"),
        ("import nothing_like_it", "nothing_like_it"),
        (None, "there is no file"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_the_start(folder: Path, source: str | None, said: str):
    if source is not None:
        mine(source)
    with pytest.raises(SettingError, match=rf"environment\.options\.reward: .*mine\.py:score.*{said}"):
        environments.make(settings(reward="mine.py:score"))


def test_an_episode_of_many_answers_ends_with_the_first_right_one_or_the_last(folder: Path):
    [task] = tasks(both(QUESTION), turns=2)
    for said, ended in (("4", (1, True, False)), ("5", (2, False, True))):
        house = house_of(
            ActSettings(turns=5, episodes=1),
            lambda prompt, said=said: said,
            lambda: environments.make(settings(turns=2)),
            task,
        )
        last = house.turns[-1]
        assert (len(house.turns), last.terminated, last.truncated) == ended


def test_options_that_make_no_sense_are_refused(folder: Path):
    mine("def score(text):\n    return 1\n")
    for options, key in (
        ({"reward": None}, "reward"),
        ({"reward": "nobody"}, "reward"),
        ({"reward": {"judge": {}}}, "reward.judge.endpoint"),
        ({"prompt": "{"}, "prompt"),
        ({"turns": 0}, "turns"),
        ({"reward": "mine.py:score", "limit_s": 0}, "limit_s"),
        ({"limit_s": 3}, "limit_s"),
    ):
        with pytest.raises(SettingError, match=rf"environment\.options\.{key}"):
            environments.make(settings(**options))
    with pytest.raises(SettingError, match=r"environment\.time_limit_s.*49 or more"):
        environments.make(settings(reward="mine.py:score", limit_s=25))


def test_a_failure_outside_of_a_group_is_one_for_who_steps_by_hand(folder: Path):
    mine("def score(text):\n    return 'much'\n")
    with pytest.raises(EpisodeFailure, match="mine.py:score returned"):
        played("4", QUESTION, reward="mine.py:score")
