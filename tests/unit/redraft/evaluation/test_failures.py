"""A dataset of failures: one wrong answer a task, tried for until one comes, and read back as training tasks."""

from __future__ import annotations

import numpy as np
import pytest

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from protocols.errors import SettingError
from protocols.turns import LOGPROBS, TOKENS, Role, Turn
from redraft.evaluation import failures
from redraft.models.make import build_tokenizer

SIGNS = EnvironmentSettings(name="signs")


def answer(success: bool, ids: list[int], role: Role = Role.ATTEMPT) -> Turn:
    ids = np.array(ids, TOKENS)
    nothing = np.empty(0, TOKENS)
    return Turn(bytes(16), 0, 0, -1, nothing, ids, np.zeros(len(ids), LOGPROBS), (), role, extra={"success": success})


def test_each_task_is_tried_until_it_fails_and_no_longer():
    tasks = [{"id": name} for name in "abcd"]
    answers = {
        "a": [answer(False, [1])],
        "b": [answer(True, [2]), answer(False, [3, 4])],
        "c": [answer(True, [5])] * 3,
        "d": [answer(False, [], Role.ERROR), answer(False, [6])],
    }
    asked = []

    def play(left):
        asked.append([task["id"] for task in left])
        return [[answers[task["id"]].pop(0)] for task in left]

    found = failures.collect(tasks, 3, play)
    assert asked == [["a", "b", "c", "d"], ["b", "c", "d"], ["c"]]
    assert found == [{"id": "a", "attempt": [1]}, {"id": "b", "attempt": [3, 4]}, {"id": "d", "attempt": [6]}]


def saved(folder, kind):
    """A folder with a tokenizer of that kind."""
    build_tokenizer(kind, 256).save_pretrained(folder / kind)
    return folder / kind


def test_a_file_of_failures_is_read_back_as_the_training_tasks(tmp_path):
    tasks = environments.tasks(SIGNS, DataSettings(), "train")[:3]
    file = tmp_path / "made" / "failures.jsonl"
    written = [task | {"attempt": [n]} for n, task in enumerate(tasks)]
    model = saved(tmp_path, "characters")
    failures.write(written, model, file)
    data = DataSettings(failures=str(file))
    named = {"tokenizer": failures.tokenizer_digest(model)}
    assert environments.tasks(SIGNS, data, "train") == [task | named for task in written]
    assert environments.tasks(SIGNS, data, "test") == environments.tasks(SIGNS, DataSettings(), "test")


def test_failures_of_another_tokenizer_are_refused_with_the_cure(tmp_path):
    own, other = saved(tmp_path, "characters"), saved(tmp_path, "bytes")
    written = [{"id": "a", "attempt": [1]}]
    failures.write(written, own, tmp_path / "failures.jsonl")
    tasks = environments.tasks(SIGNS, DataSettings(failures=str(tmp_path / "failures.jsonl")), "train")
    failures.check(tasks, own)
    for wrong, model in ((tasks, other), (written, own)):
        with pytest.raises(SettingError, match=r"data\.failures: .*Collect them anew with this model"):
            failures.check(wrong, model)


@pytest.mark.parametrize("text, said", [("{", "cannot be read"), ('{"id": "a"}', "line 1 .* no failed answer")])
def test_a_file_that_holds_no_failures_is_refused(tmp_path, text, said):
    file = tmp_path / "failures.jsonl"
    file.write_text(text)
    with pytest.raises(SettingError, match=said):
        environments.tasks(SIGNS, DataSettings(failures=str(file)), "train")
    with pytest.raises(SettingError, match="data.failures"):
        environments.tasks(SIGNS, DataSettings(failures=str(tmp_path / "none")), "train")
