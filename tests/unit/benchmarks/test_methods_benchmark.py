"""A benchmark of methods goes on where it was cut off, and trains again what was trained with other settings."""

from __future__ import annotations

import json

import pytest

from benchmarks import methods
from benchmarks.methods import Bench, Method
from benchmarks.methods_page import tables
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure
from protocols.reports import RunEnded

START = Method("start", "tries", ("steps=1",))
AFTER = Method("after", "tries", ("steps=2",), start="start")


class Trained(Bench):
    """Every command succeeds at once; each costs one second more than the one before."""

    def __init__(self, folder):
        super().__init__(folder, quick=False)
        self.names: list[str] = []

    def _redraft(self, command, method, arguments, log):
        if command == "train":
            self.names.append(method.name)
            self.run_of(method, 0).mkdir(parents=True, exist_ok=True)
        return float(len(self.names))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "METHODS", (START, AFTER))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tries.yaml").write_text("steps: 3")
    return Trained(tmp_path / "bench")


def test_a_run_is_kept_while_its_settings_stay(bench):
    for _ in range(2):
        bench.train(AFTER, 0)
    assert bench.names == ["start", "after"]


def test_a_change_of_the_recipe_trains_it_and_what_stands_on_it_again(bench):
    bench.train(AFTER, 0)
    (methods.ROOT / "recipes" / "tries.yaml").write_text("steps: 4")
    bench.train(AFTER, 0)
    assert bench.names == ["start", "after"] * 2


def test_other_changes_or_another_start_train_it_again(bench):
    bench.train(AFTER, 0)
    bench.train(Method("after", "tries", ("steps=9",), start="start"), 0)
    assert bench.names == ["start", "after", "after"]
    cost = bench.run_of(START, 0) / "cost.json"
    cost.write_text(json.dumps(json.loads(cost.read_text()) | {"wall_s": 99.0}))
    bench.train(Method("after", "tries", ("steps=9",), start="start"), 0)
    assert bench.names == ["start", "after", "after", "after"]


def test_a_run_from_before_digests_is_kept(bench):
    run = bench.run_of(AFTER, 0)
    run.mkdir(parents=True)
    (run / "cost.json").write_text(json.dumps({"cpu_s": 1.0, "wall_s": 1.0}))
    assert bench.train(AFTER, 0) == run and not bench.names


def test_the_tables_say_what_the_runs_in_the_folder_came_to(bench):
    found = EvaluationSummary(
        n=4,
        turns=2,
        k=5,
        sampled=AnswerFigures(
            accuracy_by_turn=(Figure(0.25), Figure(0.5)),
            any_turn=Figure(0.75),
            pass_k=Figure(0.625),
            fix_rate=Figure(0.5),
        ),
        controls={"no reflection": AnswerFigures(fix_rate=Figure(0.125))},
    )
    run = bench.train(START, 0)
    (run / "recipe.yaml").write_text("environment: {feedback: residual}")
    (run / "summary.json").write_text(json.dumps(RunEnded("start-seed0", "done", before=found, attempts=7).to_json()))
    (result,) = methods.results(bench)
    assert result.before == result.after == [found]
    told = tables([result])
    assert "| `start` (T = 2) | 1 | .25 | .50 | .50 | - | - | .75 | .62 | 7 |" in told
    assert "| `start` | no reflection | .12 | .12 |" in told
    assert json.loads(methods.line([result]))["methods"]["start"]["after"]["any_turn"] == 0.75
