"""The comparison at equal numbers of sampled tokens: every method has its budget, and tables say what they came to."""

from __future__ import annotations

import dataclasses

import pytest
from support.methods_bench import Trained, found
from support.places import ROOT

from benchmarks import methods, zoo
from benchmarks import zoo_page as page
from benchmarks.methods import Bench, Method
from protocols.evaluation import Figure
from redraft import recipe as recipes

ZOO = zoo.zoo()


def loaded(method: Method, quick: bool) -> recipes.Recipe:
    changes = [*method.changes, *(method.quick if quick else ())]
    changes += ["model.path=start"] if method.start else []
    changes += ["rollout.teacher.url=http://x", "rollout.teacher.model=x"] if method.teacher else []
    return recipes.load(ROOT / "recipes" / f"{method.recipe}.yaml", changes)


@pytest.mark.parametrize("method", ZOO, ids=lambda method: method.name)
def test_every_method_ends_with_the_budget_of_its_task(method):
    whole, quick = loaded(method, quick=False), loaded(method, quick=True)
    task = zoo.task_of(method)
    assert method.name.startswith(f"{task}-") and whole.evaluation.independent == zoo.K[task]
    if not whole.steps:
        assert whole.sampled_tokens is None and quick.sampled_tokens is None
        return
    share = 1.0
    if any(other.start == method.name for other in ZOO):
        share = zoo.START_SHARE
    elif method.start:
        share = 1 - zoo.START_SHARE
    assert whole.sampled_tokens == share * zoo.BUDGETS[task] and quick.sampled_tokens == share * zoo.QUICK_BUDGETS[task]
    assert whole.evaluation.every == zoo.EVERY[task] and quick.evaluation.every is None


def test_it_holds_what_it_stands_on_and_each_name_once():
    names = [method.name for method in ZOO]
    assert len(set(names)) == len(names) and not set(names) & set(methods.NAMES)
    assert {name for method in ZOO for name in (method.start, method.teacher) if name} <= set(names)
    assert {zoo.task_of(method) for method in ZOO} == set(zoo.BUDGETS)
    controls = {"signs-rise-turnwise-blank", "signs-grpo", "signs-best-of-n", "words-rise-turnwise-blank", "words-grpo"}
    assert controls < set(names) and set(zoo.QUICK_WORDS) < set(names)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Two methods, of which one starts from the other, on a task that is called signs."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tries.yaml").write_text("environment: {name: signs}\nmodel: {make: {}}\n")
    for module in (methods, zoo):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    own = Method("signs-start", "tries", seeds=1), Method("signs-after", "tries", start="signs-start")
    return Trained(tmp_path / "bench", methods=own)


def test_tables_show_turns_costs_with_what_a_method_starts_from_and_the_controls(bench):
    methods.train(bench, ["signs-after"], 2, again=False)
    told = page.tables(methods.results(bench), bench)
    (line,) = [line for line in told.splitlines() if line.startswith("| `signs-after` | 2 |")]
    assert "| better: +.75 ±.100 | +.50 ±.100 | .25 ±.000 → .50 ±.000 | .25 ±.000 → 1.00 ±.000 | .50 1.00 |" in line
    assert line.endswith("| 100 | 300 | 4 |"), "each of its own and as much of its start"
    assert "| `signs-after` | no reflection | .12 ±.000 | .12 ±.000 |" in told


@pytest.mark.parametrize(
    ("after", "said"),
    [(0.60, "better: +.35 ±.045"), (0.30, "no change: +.05 ±.045"), (0.05, "worse: -.20 ±.045"), (None, "not trained")],
)
def test_what_did_not_gain_is_said_to_be_no_change_or_worse(bench, after, said):
    methods.train(bench, ["signs-start"], 1, again=False)
    (row,) = bench.rows()[:1]

    def ended(value: float):
        summary = found(value)
        turns = tuple(Figure(value, 0.0316) for _ in range(2))
        return dataclasses.replace(summary, sampled=dataclasses.replace(summary.sampled, accuracy_by_turn=turns))

    row = dataclasses.replace(row, before=ended(0.25), after=None if after is None else ended(after))
    assert page.verdict([row]) == said


def test_of_two_seeds_that_differ_little_is_known(bench):
    methods.train(bench, ["signs-start"], 2, again=False)
    first, second = bench.rows()
    told = []
    for gains in ((0.30, 0.32), (0.10, 0.30)):
        ended = [
            dataclasses.replace(row, after=found(0.25, 0.25 + gain), before=found(0.25))
            for row, gain in zip((first, second), gains, strict=True)
        ]
        told.append(page.verdict(ended))
    assert told == ["better: +.31 ±.100", "no change: +.20 ±.100"]


def test_the_page_is_written_between_its_marks_with_a_picture(bench, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "results.md").write_text(f"above\n{page.BEGIN}\nold\n{page.END}\nbelow\n")
    methods.train(bench, ["signs-after"], 1, again=False)
    page.write(methods.results(bench), bench, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text.startswith(f"above\n{page.BEGIN}\n![") and text.endswith(f"{page.END}\nbelow\n") and "old" not in text
    assert (tmp_path / "images" / page.PICTURE).stat().st_size
    after = next(result for result in methods.results(bench) if result.method.start)
    assert page.curve(after, methods.results(bench)) == [(50, 0.25), (100, 1.0)], "after what its start has sampled"


def test_the_page_holds_the_tables_of_all_rows_that_are_committed(tmp_path):
    bench = Bench(tmp_path, False, ZOO)
    text = (ROOT / "docs" / "results.md").read_text()
    assert page.tables(methods.results(bench), bench) in text, "write it anew: python -m benchmarks.zoo --write"
