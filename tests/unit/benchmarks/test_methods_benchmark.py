"""A benchmark of methods goes on where it was cut off, and what its runs came to outlives the machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys

import pytest
from support import processes
from support.methods_bench import Trained, write_run
from support.places import PYTHONPATH, ROOT
from support.waiting import deadline_s, until

from benchmarks import method_rows, methods
from benchmarks import methods_page as page
from benchmarks.methods import Method

START = Method("start", "tries", ("steps=1",))
AFTER = Method("after", "tries", ("steps=2",), start="start")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "METHODS", (START, AFTER))
    (tmp_path / "recipes").mkdir()
    recipe(tmp_path, "steps: 3")
    return Trained(tmp_path / "bench")


def recipe(root, text: str) -> None:
    (root / "recipes" / "tries.yaml").write_text(text)


def test_a_run_is_kept_while_its_settings_stay(bench):
    for _ in range(2):
        bench.train(AFTER, 0)
    assert bench.names == ["start", "after"]


def test_a_change_of_the_recipe_trains_it_and_what_stands_on_it_again(bench):
    bench.train(AFTER, 0)
    recipe(methods.ROOT, "steps: 3  # a comment is no setting")
    bench.train(AFTER, 0)
    assert bench.names == ["start", "after"]
    recipe(methods.ROOT, "steps: 4")
    bench.train(AFTER, 0)
    assert bench.names == ["start", "after"] * 2


def test_other_changes_train_it_again(bench):
    bench.train(AFTER, 0)
    bench.train(Method("after", "tries", ("steps=9",), start="start"), 0)
    assert bench.names == ["start", "after", "after"]


def test_a_row_on_another_machine_is_enough_and_an_older_one_is_trained_again_when_asked_for(bench):
    bench.train(AFTER, 0)
    shutil.rmtree(bench.folder)
    other = Trained(bench.folder)
    assert not other.lacks(AFTER, 0, again=False) and not other.lacks(AFTER, 0, again=True)
    assert other.lacks(AFTER, 1, again=False), "another seed is another run"
    recipe(methods.ROOT, "steps: 4")
    assert not other.lacks(AFTER, 0, again=False) and other.lacks(AFTER, 0, again=True)


def test_a_digest_is_the_same_wherever_the_tree_lies(bench, tmp_path, monkeypatch):
    def digest(root):
        monkeypatch.setattr(methods, "ROOT", root)
        own = Method("own", "tries", (f"environment.name={root}/benchmarks/evolver.py:Flagged",))
        return bench.digest(own)

    shutil.copytree(tmp_path / "recipes", tmp_path / "elsewhere" / "recipes")
    assert digest(tmp_path) == digest(tmp_path / "elsewhere")


def test_a_row_holds_what_tables_need_and_is_read_back_as_strict_json(bench):
    run = bench.train(START, 0)
    (text,) = bench.file.read_text().splitlines()
    row = method_rows.Row.from_json(json.loads(text, parse_constant=pytest.fail))
    assert row == method_rows.kept(run) and (row.method, row.seed, row.attempts) == ("start", 0, 7)
    assert (row.sampled_tokens, row.learner_tokens, row.cpu_s) == (50, 150, 1.0), "what was played twice was paid twice"
    assert [(point.sampled_tokens, point.first, point.solved) for point in row.curve] == [(0, 0.25, 0.25), (50, 0.5, 1)]


def test_a_run_that_was_stopped_leaves_no_row(tmp_path):
    write_run(tmp_path, "stopped")
    with pytest.raises(ValueError, match="no run that is done"):
        method_rows.of_run(tmp_path)


def test_quick_rows_stay_in_their_folder(bench, tmp_path):
    quick = Trained(tmp_path / "quick", quick=True)
    quick.train(START, 0)
    assert not (tmp_path / methods.ROWS).exists() and [row.method for row in quick.rows()] == ["start"]
    assert quick.digest(START) != bench.digest(START)


def test_of_two_rows_of_a_seed_the_newest_counts_and_older_settings_stand_until_newer_ones_are_there(bench):
    bench.train(START, 0)
    (first,) = bench.rows()[:1]
    again = dataclasses.replace(first, ended="2999-01-01T00:00:00+00:00", cpu_s=9.0)
    other = dataclasses.replace(first, ended="2999-01-02T00:00:00+00:00", digest="other", seed=1)
    rows, digest = [other, again, first], first.digest
    assert [row.cpu_s for row in method_rows.chosen(rows, "start", digest)] == [9.0]
    assert method_rows.chosen(rows, "start", "newer") == [other]
    assert method_rows.chosen(rows, "unknown", digest) == []


def test_the_tables_say_what_the_rows_came_to_and_mark_older_ones(bench):
    bench.train(START, 0)
    told = page.tables(page.lines(methods.results(bench)))
    figures = ".25 → .50 | .25 → 1.00 | .50 → .50 | - → - | - → - | .75 → .75 | .62 → .62 | 7 | 50 | 150 | 1 |"
    assert f"| `start` (T = 2) | 1 | {figures}" in told
    assert "| `start` | no reflection | .12 | .12 |" in told and page.OLDER not in told
    line = json.loads(methods.line(methods.results(bench)))["methods"]["start"]
    assert line["after"]["any_turn"] == 0.75 and line["sampled_tokens"] == 50 and not line["older"]
    recipe(methods.ROOT, "steps: 4")
    told = page.tables(page.lines(methods.results(bench)))
    assert f"| `start` † (T = 2) | 1 | {figures}" in told and page.NOTE in told


def test_a_method_without_a_row_keeps_the_figures_that_were_printed(bench, tmp_path):
    printed = page.printed(ROOT)
    grpo = next(line for line in printed if line.method == "grpo")
    told = page.tables([grpo])
    assert "| `grpo` † (T = 1) | 3 | .34 ±.015 → .51 ±.020 | .34 ±.015 → .51 ±.020 | - → - |" in told
    assert "| .81 ±.002 → .75 ±.016 | 31,488 | - | - | 168 |" in told
    bench.train(START, 0)
    mine = dataclasses.replace(grpo, method="start"), dataclasses.replace(grpo, method="after")
    shown = page.lines(methods.results(bench), mine, ("after", "start"))
    assert [(line.method, line.older) for line in shown] == [("after", True), ("start", False)]


def test_the_page_holds_the_tables_of_all_rows_that_are_committed(tmp_path):
    found = methods.results(methods.Bench(tmp_path, quick=False))
    shown = page.tables(page.lines(found, page.printed(ROOT), methods.NAMES))
    assert shown in (ROOT / "docs" / "results.md").read_text(), "write it anew: python -m benchmarks.methods --write"


TRAINING = """
import pathlib, signal, sys, time

def told(*_):
    pathlib.Path("ended").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, told)
pathlib.Path("begun").touch()
signal.pause()
"""
BENCH = """
import pathlib, sys
from benchmarks import methods
methods.ROOT = pathlib.Path(sys.argv[1])
bench = methods.Bench(methods.ROOT / "bench", True, [methods.Method("one", "tries")])
methods.run(lambda: bench._redraft("train", bench.find("one"), [], methods.ROOT / "log"))
"""


def test_a_benchmark_that_is_told_to_end_ends_what_it_trains(tmp_path):
    (tmp_path / "redraft").mkdir()
    (tmp_path / "redraft" / "__main__.py").write_text(TRAINING)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    process = processes.start([sys.executable, "-c", BENCH, str(tmp_path)], env=environment)
    until((tmp_path / "bench" / "begun").exists, lambda: "it has not begun", 60.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(deadline_s(60.0)) == 128 + signal.SIGTERM
    assert (tmp_path / "bench" / "ended").exists()
