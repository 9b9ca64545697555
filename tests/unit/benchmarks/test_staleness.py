"""What staleness costs: each correction at each bound, rows that a run goes on from, and what they show."""

from __future__ import annotations

import json

import pytest
from support.methods_bench import Trained
from support.places import ROOT

from benchmarks import method_rows, methods, staleness
from benchmarks.methods import Method
from protocols.reports import BatchReport, FitReport, StepLine, StepReport
from redraft import recipe as recipes

ALL = staleness.methods()


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_each_is_the_same_recipe_but_for_its_bound_and_its_correction(method):
    for changes in (method.changes, (*method.changes, *method.quick)):
        recipe = recipes.load(ROOT / "recipes" / f"{method.recipe}.yaml", changes)
        correction, _, bound = method.name.rpartition("-")
        assert str(recipe.learner.max_staleness) == bound and correction in staleness.CORRECTIONS
        assert recipe.learner.updates.steps == staleness.EPOCHS


def test_the_oldest_groups_at_the_largest_bound_are_trained_before_the_end():
    recipe = recipes.load(ROOT / "recipes" / "signs-grpo.yaml", ALL[0].changes)
    assert recipe.steps > 2 * max(int(bound) for bound in staleness.BOUNDS if bound != "auto")


def test_what_is_quick_is_among_what_there_is():
    names = {method.name for method in ALL}
    quick = {f"{one}-{bound}" for one in staleness.QUICK_CORRECTIONS for bound in staleness.QUICK_BOUNDS}
    assert quick < names and len(names) == len(staleness.CORRECTIONS) * len(staleness.BOUNDS)


class Aged(Trained):
    """Its runs' steps have staleness, effective samples and a bound."""

    def _redraft(self, command, method, arguments, log):
        seconds = super()._redraft(command, method, arguments, log)
        if command == "train":
            run = self.folder / "runs" / arguments[arguments.index("--run") + 1]
            lines = [
                StepLine(
                    StepReport(
                        step=step,
                        fit=FitReport(effective_samples=share),
                        batch=BatchReport(staleness_mean=age),
                        held_share=0.25,
                        max_staleness=bound,
                    )
                )
                for step, share, age, bound in ((1, 1.0, 0.0, 0), (2, 0.5, 3.0, 2))
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
        return seconds


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tries.yaml").write_text("environment: {name: signs}\n")
    return Aged(tmp_path / "bench", methods=[Method("sequence-mask-auto", "tries"), Method("none-4", "tries")])


def test_a_row_says_what_staleness_was_and_what_it_came_to_and_is_not_made_again(bench):
    names = [method.name for method in bench.methods]
    for _ in range(2):
        methods.train(bench, names, 1, again=False)
    assert bench.names == names
    row = bench.rows()[0]
    assert row.fit == {"effective_samples": 0.75, "staleness": 1.5, "held_share": 0.25, "bound": 2}
    assert method_rows.Row.from_json(json.loads(row.to_json())).fit == row.fit
    shown = staleness.table(methods.results(bench)).splitlines()
    assert shown[2].startswith("| sequence-mask | auto | 1 | 0.25 | 0.5 | 0.75 | - | 1.5 | 0.25 | 2 |")
    figures = json.loads(staleness.line(methods.results(bench)))["staleness"]
    assert figures["none-4"]["effective_samples"] == 0.75 and figures["none-4"]["masked_share"] is None
