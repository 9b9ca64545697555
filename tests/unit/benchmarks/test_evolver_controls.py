"""What AgentEvolver's mechanisms are compared with differs from them in the one thing that it is to differ in."""

from __future__ import annotations

import pytest
from support.methods_bench import Trained

from actors import environments, experience
from actors.config import DataSettings, EnvironmentSettings
from benchmarks import evolver, methods
from benchmarks.methods import Method

TASK = {"id": "minicraft/train/0", "base": "abdfh", "recipes": ["dhc", "fab"], "good": 1}
ACTIONS = ["@2", "+f", "+f", "+d", "+a", "*2", "+b"]
GOOD = [False, True, False, False, True, False, True]


def flags(kind: str) -> list:
    made = environments.make(EnvironmentSettings(name=f"{evolver.__file__}:Flagged", options={"flags": kind}))
    found = []
    for seed in range(40):
        made.reset(seed=seed, options={"task": TASK})
        found += [made.step(action)[4].get("good") for action in ACTIONS]
    return found


def test_flags_are_spoilt_as_their_name_says():
    assert flags("inverted") == [not flag for flag in GOOD] * 40
    assert flags("outcome") == [None] * 280
    flipped = sum(one != other for one, other in zip(flags("flipped"), GOOD * 40, strict=True))
    assert 30 <= flipped <= 85, "a fifth of 280, within four standard deviations"
    assert 60 <= sum(flags("random")) <= 180, "as many are good as in truth: 120 of 280"


def test_told_questions_hold_experience_in_training_only(tmp_path):
    pool = tmp_path / "pool.jsonl"
    lesson = {"when_to_use": "", "content": "@2", "task": "abdfh;1dhc;2fab>\n"}
    experience.write(pool, [lesson, lesson | {"task": "other words", "content": "@1"}])
    made = evolver.Told(pool=str(pool))
    starts = [made.reset(seed=seed, options={"task": TASK})[0] for seed in range(40)]
    assert set(starts) == {"abdfh;1dhc;2fab>\n", "@2;abdfh;1dhc;2fab>\n"}
    test = TASK | {"id": "minicraft/test/0"}
    assert {made.reset(seed=seed, options={"task": test})[0] for seed in range(40)} == {"abdfh;1dhc;2fab>\n"}
    evolver.shuffled(pool, pool)
    assert [one["content"] for one in experience.read(pool)] == ["@1", "@2"]


def test_guessed_targets_lie_within_range_and_most_cannot_be_hit():
    settings = EnvironmentSettings(name=f"{evolver.__file__}:Guessed")
    guessed = environments.tasks(settings, DataSettings(), "train")
    known = {(task["digits"], task["target"]) for task in evolver.Signs.tasks(DataSettings(), "train")}
    share = sum((task["digits"], task["target"]) in known for task in guessed) / len(guessed)
    assert 0.2 < share < 0.3
    assert environments.tasks(settings, DataSettings(), "test")[0]["id"].startswith("signs/")


@pytest.mark.parametrize(
    ("made", "command", "named"),
    [
        ("tasks", "question", "data.synthetic.path="),
        ("experience", "experience", "rollout.experience.path="),
        ("kept", "experience", "environment.options={read: 0.5, pool: "),
    ],
)
def test_what_a_method_needs_is_made_before_it_and_named_to_it(tmp_path, monkeypatch, made, command, named):
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tries.yaml").write_text("steps: 3")
    bench = Trained(tmp_path / "bench")
    bench.train(Method("one", "tries", made=made), 0)
    calls = bench.calls
    assert [name for name, _ in calls] == ["pretrain", command, "train"]
    file = calls[1][1][0]
    assert any(change.startswith(named + file) for change in calls[2][1]), calls
    assert bench.digest(Method("one", "tries", made=made)) != bench.digest(Method("one", "tries"))


def test_experience_is_that_of_the_tasks_that_were_found_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tries.yaml").write_text("steps: 3")
    bench = Trained(tmp_path / "bench")
    bench.train(Method("one", "tries", made="both"), 0)
    calls = dict(bench.calls)
    assert [name for name, _ in bench.calls] == ["pretrain", "question", "experience", "train"]
    tasks = f"data.synthetic.path={calls['question'][0]}"
    assert tasks in calls["experience"] and tasks in calls["train"]
    assert f"rollout.experience.path={calls['experience'][0]}" in calls["train"]
