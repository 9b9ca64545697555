"""Data files as people have them: what can be read is read, and what cannot is named by its file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors import environments, synthetic
from actors.config import DataSettings, EnvironmentSettings, SyntheticSettings
from actors.environments.base import TextEnvironment
from actors.environments.countdown import Countdown
from actors.environments.gsm8k import GSM8K
from actors.environments.math import Math
from protocols.errors import SettingError

ROW = json.dumps({"question": "\u00dcn\u00efcode\u2028?", "answer": "x #### 1,000"}, ensure_ascii=False)


def math_row(**fields) -> str:
    return json.dumps({"problem": "p", "level": "Level 1", "type": "a"} | fields)


def read(folder: Path, kind: type[TextEnvironment], data: str | bytes) -> list[dict]:
    (folder / "train.jsonl").write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(kind.tasks(DataSettings(path=str(folder)), "train"))


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (f"{ROW}\n", 1),
        (f"{ROW}\r\n{ROW}\r\n", 2),
        (f"\n\n{ROW}\n \n", 1),
        (ROW, 1),
        (b"\xef\xbb\xbf" + ROW.encode(), 1),
    ],
    ids=["plain", "CRLF", "blank lines", "no last newline", "byte order mark"],
)
def test_lines_are_read_however_a_file_ends_them(tmp_path, data, count):
    tasks = read(tmp_path, GSM8K, data)
    assert len(tasks) == count and tasks[0]["target"] == "1000" and "\u2028" in tasks[0]["question"]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (f"{ROW}\n{ROW}\n{{bad\n", r"line 3 of train\.jsonl is no JSON"),
        (f"{ROW}\n[1]\n", r"line 2 of train\.jsonl is no map"),
        (ROW + "\n" + json.dumps({"question": "q", "answer": None}), r"gsm8k/train/1 has answer=None"),
        (json.dumps({"question": "q", "answer": 5}), r"gsm8k/train/0 has answer=5"),
        (json.dumps({"answer": "#### 5"}), r"gsm8k/train/0 has question=None"),
        (ROW.replace("\u2028", "").encode("latin-1"), "utf-8"),
    ],
    ids=["broken", "a list", "null", "a number", "missing", "another encoding"],
)
def test_what_cannot_be_read_is_named(tmp_path, data, named):
    with pytest.raises(SettingError, match=rf"data\.path.*{named}"):
        read(tmp_path, GSM8K, data)


@pytest.mark.parametrize(
    "row",
    [
        math_row(solution=r"so $\boxed 2$"),
        math_row(solution=r"so \fbox{2}"),
        math_row(solution=r"\boxed{2}", level=3),
        json.dumps({"problem": "p", "solution": "", "answer": "2", "level": 3, "subject": "Algebra", "unique_id": "x"}),
    ],
    ids=["no braces", "fbox", "a number as level", "answer and subject"],
)
def test_problems_are_read_in_the_columns_of_public_sets(tmp_path, row):
    (task,) = read(tmp_path, Math, row)
    assert task["target"] == "2"


def test_numbers_to_combine_need_no_solution_and_are_numbers(tmp_path):
    (task,) = read(tmp_path, Countdown, json.dumps({"nums": [1, 2, 3], "target": 6}))
    environment = Countdown()
    environment.reset(seed=0, options={"task": task})
    assert environment.step("<answer>1+2+3</answer>")[1] == 1 and environment.hint() is None
    for wrong in ({"nums": [1, 2, 3], "target": "6"}, {"nums": ["1"], "target": 1}):
        with pytest.raises(SettingError, match="must be whole numbers"):
            read(tmp_path, Countdown, json.dumps(wrong))


def test_a_task_that_is_twice_in_a_file_is_laid_to_that_file(tmp_path):
    failures, made = tmp_path / "failures.jsonl", tmp_path / "made.jsonl"
    failures.write_text('{"id": "a", "attempt": "1"}\n' * 2)
    task = {"id": synthetic.identity("q", ["r"]), "query": "q", "reference": ["r"], "proved": True}
    made.write_text((json.dumps(task) + "\n") * 2)
    data = {"failures": DataSettings(failures=str(failures))}
    data["synthetic"] = DataSettings(train_size=4, synthetic=SyntheticSettings(path=str(made)))
    for name, settings in data.items():
        with pytest.raises(SettingError, match=rf"data.{name}: .*jsonl has two tasks of the id .*`redraft"):
            environments.tasks(EnvironmentSettings(name="signs"), settings, "train")
