"""Tasks that an environment finds for itself: only what was seen to succeed is kept, and only that is ever played."""

from __future__ import annotations

import json

import pytest

from actors import environments, synthetic
from actors.config import DataSettings, EnvironmentSettings, SyntheticSettings
from actors.distinct import Distinct, words
from actors.environments.base import OneAnswer, Verdict
from protocols.errors import SettingError
from redraft import recipe as recipes
from redraft.launch import questions


class Sums(OneAnswer):
    """Add two numbers; of what it proposes some is wrong, twice the same, without a reference, or breaks."""

    blocking = False

    def __init__(self, feedback: str = "binary", seen: str = ""):
        super().__init__(feedback)
        self._seen = seen

    @classmethod
    def tasks(cls, data, split):
        return [{"id": f"{split}/{n}", "a": n, "b": 1} for n in range(8)]

    def question(self, task):
        return f"What is {task['a']} and {task['b']}?"

    def judge(self, task, text):
        if self._seen:
            with open(self._seen, "a") as log:
                log.write(json.dumps(task) + "\n")
        if text == "break":
            raise RuntimeError("it broke")
        return Verdict(float(text == str(task["a"] + task["b"])), text)

    def explore(self, rng):
        return [(str(rng.integers(1000)), str(rng.integers(1000)))]

    def propose(self, trajectory):
        [(one, other)] = trajectory
        a, b = int(one), int(other)
        right = {"a": a, "b": b, "query": f"add {a} to {b} please", "confidence": 0.5}
        return [
            right | {"reference": ["0", str(a + b), "more"]},
            right | {"query": f"{a} less {b} if you can", "reference": [str(a - b - 1)]},
            right | {"query": f"nothing known of {a} {b}", "reference": []},
            right | {"query": f"break it with {a} {b}", "reference": ["break"]},
            right | {"query": f"please add {b} to {a}", "reference": [str(a + b)], "confidence": 0.4},
        ]


def recipe(name: str = f"{__file__}:Sums", **options):
    values = {
        "name": "asking",
        "steps": 1,
        "model": {"make": {}},
        "environment": {"name": name, "options": options},
        "rollout": {"name": "attempt", "episodes": 2},
    }
    return recipes.build(values)


def test_only_tasks_whose_reference_succeeds_are_kept_once_and_with_what_succeeded(tmp_path):
    file, said = tmp_path / "tasks.jsonl", []
    counts = questions.make(recipe(), file, 5, said.append)
    found = synthetic.read(file)
    assert len(found) == 5 == counts.kept
    assert (counts.proposed, counts.empty, counts.infeasible, counts.broken, counts.alike) == (25, 5, 5, 5, 5)
    for task in found:
        assert task["reference"] == ["0", str(task["a"] + task["b"])] and task["query"].startswith("add ")
    assert said == ["5 of 5 explored, 5 tasks kept"]


def test_a_task_whose_reference_fails_is_never_played_in_training(tmp_path):
    file = tmp_path / "tasks.jsonl"
    questions.make(recipe(), file, 3, lambda line: None)
    settings = EnvironmentSettings(name=f"{__file__}:Sums")
    played = environments.tasks(settings, DataSettings(synthetic=SyntheticSettings(path=str(file))), "train")
    made = environments.make(settings)
    for task in played:
        if task["id"].startswith("synthetic/"):
            made.reset(seed=0, options={"task": task})
            assert [made.step(action)[4]["success"] for action in task["reference"]][-1]
    assert sum(task["id"].startswith("synthetic/") for task in played) == 3
    for change in ({"proved": False}, {"reference": ["7"]}, {"query": "another"}):
        line, *rest = map(json.loads, file.read_text().splitlines())
        other = tmp_path / "changed.jsonl"
        other.write_text("".join(json.dumps(task) + "\n" for task in [line | change, *rest]))
        with pytest.raises(SettingError, match=r"data\.synthetic\.path: line 1"):
            environments.tasks(settings, DataSettings(synthetic=SyntheticSettings(path=str(other))), "train")


def test_what_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "CHUNK", 2)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    questions.make(recipe(), whole, 8, lambda line: None)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        questions.make(recipe(), parts, 8, stop)
    before = parts.read_text()
    (tmp_path / "parts.jsonl.progress").unlink()  # as if it had ended between the tasks and the mark
    questions.make(recipe(), parts, 8, lambda line: None)
    assert parts.read_text() == whole.read_text() and parts.read_text().startswith(before) and before
    assert questions.make(recipe(), parts, 8, lambda line: None).explored == 0
    with pytest.raises(SettingError, match="another environment"):
        questions.make(recipe(seen=str(tmp_path / "log")), parts, 9, lambda line: None)


def test_they_are_mixed_by_a_ratio_of_the_original_tasks_or_stand_alone(tmp_path):
    file = tmp_path / "tasks.jsonl"
    questions.make(recipe(), file, 6, lambda line: None)
    settings = EnvironmentSettings(name=f"{__file__}:Sums")

    def ids(split="train", **changes):
        data = DataSettings(train_size=4, synthetic=SyntheticSettings(path=str(file), **changes))
        return [task["id"].partition("/")[0] for task in environments.tasks(settings, data, split)]

    assert ids() == ["train"] * 4 + ["synthetic"] * 4
    assert ids(ratio=0.5, original=False) == ["synthetic"] * 2 and ids(ratio=9) == ["train"] * 4 + ["synthetic"] * 6
    assert ids("test") == ["test"] * 8
    with pytest.raises(SettingError, match="no task"):
        ids(ratio=0.01)
    with pytest.raises(ValueError, match="leave one out"):
        DataSettings(failures="f", synthetic=SyntheticSettings(path="p"))


def test_signs_makes_targets_of_what_was_hit(tmp_path):
    counts = questions.make(recipe("signs"), tmp_path / "tasks.jsonl", 200, lambda line: None)
    found = synthetic.read(tmp_path / "tasks.jsonl")
    assert counts.infeasible == counts.empty == 0 and len(found) == counts.kept > 150
    tests = {task["digits"] for task in environments.tasks(EnvironmentSettings(name="signs"), DataSettings(), "test")}
    assert not tests & {task["digits"] for task in found}
    assert all(task["query"] == f"{task['digits']}>{task['target']}" for task in found)


def test_an_environment_that_cannot_explore_is_refused(tmp_path):
    with pytest.raises(SettingError, match="explore"):
        questions.make(recipe("words"), tmp_path / "tasks.jsonl", 1, print)


def test_texts_are_alike_from_four_fifths_of_their_words_on():
    known = Distinct()
    assert known.take(words("a b c d e")) and not known.new(words("E, d; c b a")) and not known.take(words("a b c d"))
    assert known.take(words("a b c f g")) and known.take(words("")) and not known.take(words(" . "))
    assert not known.new(words("a b c d e f")) and known.new(words("a b c d x y"))
