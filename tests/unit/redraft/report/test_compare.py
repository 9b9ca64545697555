"""What a comparison promises: every run as its folder says, seeds pooled, and figures of M0 at equal cost beside it."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from protocols.errors import SettingError
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure
from redraft.cli.main import app
from redraft.report import compare
from redraft.report.compare_page import write_page

RECIPE = {
    "name": "tries",
    "seed": 0,
    "steps": 4,
    "model": {"make": {"hidden": 96, "seed": 0}},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 3},
    "learner": {"credit": {"name": "turnwise"}, "objective": {"name": "awr"}},
}


def answers(turns: list[float], se: float = 0.02, **figures) -> dict:
    """A summary of answers with that accuracy by turn."""
    own = {"accuracy_by_turn": turns, "majority_turns": turns[-1], "any_turn": turns[-1]}
    values = own | {"pass_k": 0.8, "majority_k": 0.4} | figures
    errors = {key: [se] * len(value) if isinstance(value, list) else se for key, value in values.items()}
    greedy = own | {"se": {key: errors[key] for key in own}}
    return {
        "kind": "answers",
        "n": 500,
        "turns": len(turns),
        "k": 5,
        **values,
        "se": errors,
        "errors": 0,
        "generations": {"sampled": 500 * len(turns)},
        "greedy": greedy,
        "controls": {},
    }


def actions(success: float) -> dict:
    figures = {
        "success": success,
        "success_after_error": success / 3,
        "error_share": 0.5,
        "actions": 5.0,
        "loop_rate": 0.1,
        "pass_k": 0.7,
    }
    return {
        "kind": "actions",
        "n": 200,
        "turns": 8,
        "k": 5,
        **figures,
        "se": dict.fromkeys(figures, 0.03),
        "errors": 0,
        "greedy": None,
        "controls": {},
    }


def make(folder: Path, recipe: dict, evaluations: list[tuple[str, int, dict]], steps: int = 4, done: bool = True):
    """A run's folder; evaluations are (label, step, summary)."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "00" * 16, "model": "m"}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [{"step": n + 1, "turns": 100, "generations": 150, "time_s": 10.0 * (n + 1)} for n in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = [{"label": label, "step": step} | summary for label, step, summary in evaluations]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
    if done:
        (folder / "summary.json").write_text(json.dumps({"name": folder.name, "state": "done", "seconds": 75.0}))
    return folder


def seeded(seed: int, **changes) -> dict:
    return RECIPE | {"name": f"tries-{seed}", "seed": seed, "model": {"make": {"hidden": 96, "seed": seed}}} | changes


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of one recipe, one of another recipe, one of another environment, one without an evaluation."""
    before, folder = answers([0.3, 0.15, 0.1]), tmp_path / "runs"
    for seed, last in enumerate((0.7, 0.8, 0.75)):
        measured = answers([0.4, 0.4, 0.4]), answers([0.5, 0.6, last])
        evaluations = [("before", 0, before), ("eval", 2, measured[0]), ("after", 4, measured[1])]
        make(folder / f"tries-{seed}", seeded(seed), evaluations)
    grpo = seeded(0, rollout={"name": "attempt"}, learner={"credit": {"name": "group"}, "objective": {"name": "grpo"}})
    make(folder / "grpo", grpo, [("before", 0, answers([0.3])), ("after", 4, answers([0.5]))])
    craft = seeded(0, environment={"name": "minicraft", "feedback": "binary"})
    make(folder / "craft", craft, [("before", 0, actions(0.33)), ("eval", 4, actions(0.5))], done=False)
    make(folder / "new", seeded(0, steps=9), [], steps=0, done=False)
    return folder


def entries(runs: Path, *names: str) -> list[compare.PooledRuns]:
    return compare.pool([compare.read(runs / name) for name in names])


def by_turn(summary: EvaluationSummary | None) -> list[float | None]:
    assert summary is not None and isinstance(summary.sampled, AnswerFigures)
    return [figure.value for figure in summary.sampled.accuracy_by_turn]


def row(entry: compare.PooledRuns, label: str) -> compare.PooledRow:
    return next(found for found in entry.rows() if found.label == label)


def test_a_run_is_what_its_folder_says(runs: Path):
    found = compare.read(runs / "tries-0")
    assert found.method == "retry × turnwise × awr"
    assert (found.environment, found.state, found.steps, found.seconds) == ("signs", "done", 4, 75.0)
    assert found.generations == 4 * 150
    assert [(point.step, point.generations) for point in found.curve] == [(0, 0), (2, 2 * 150), (4, 4 * 150)]
    assert by_turn(found.before) == [0.3, 0.15, 0.1]


def test_steps_that_a_resumed_run_played_again_count_once_and_what_they_cost_each_time(runs: Path):
    lines = [{"step": n, "turns": 100, "generations": 800, "time_s": n} for n in (1, 2, 3, 2)]
    (runs / "new" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = [answers([0.5]) | {"label": "eval", "step": step} for step in (0, 1, 2)]
    (runs / "new" / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
    found = compare.read(runs / "new")
    assert (found.steps, found.generations) == (2, 3200)
    assert [(point.step, point.generations) for point in found.curve] == [(0, 0), (1, 800), (2, 3200)]


def test_runs_that_differ_only_in_their_seeds_are_pooled_and_no_others(runs: Path):
    found = entries(runs, "tries-0", "grpo", "tries-1", "tries-2", "new")
    assert [(entry.label, len(entry.results)) for entry in found] == [("tries", 3), ("grpo", 1), ("new", 1)]
    assert "seeds 0, 1, 2" in found[0].facts()


def test_pooled_figures_are_means_with_both_standard_errors(runs: Path):
    [entry] = entries(runs, "tries-0", "tries-1", "tries-2")
    last = row(entry, "turn 3")
    assert last.after.value == pytest.approx(0.75)
    assert last.after.error == pytest.approx(0.02)
    assert last.after.over_seeds == pytest.approx(0.05 / math.sqrt(3))
    assert last.change.value == pytest.approx(0.65) and last.change.error == pytest.approx(math.hypot(0.02, 0.02))
    assert compare.shown(last.after) == "0.750 ± 0.020 (0.029)"
    assert compare.mean([Figure(0.5), Figure()]) == compare.Pooled(0.5)


def test_the_answers_of_the_start_model_stand_beside_the_turns_of_the_trained_one(runs: Path):
    [entry] = entries(runs, "tries-0")
    oracle, majority = row(entry, "pass@5 → any of 3 turns"), row(entry, "majority@5 → majority of 3 turns")
    assert (oracle.before.value, oracle.after.value) == (0.8, 0.7)
    assert (majority.before.value, majority.after.value) == (0.4, 0.7)
    assert row(entry, "turn 3, greedy").after.value == 0.7
    assert [found.label for found in entries(runs, "grpo")[0].rows()][:2] == ["turn 1", "pass@5"]


def test_controls_of_the_rollout_have_a_row_each(runs: Path, tmp_path: Path):
    after = answers([0.5, 0.6])
    after["controls"] = {"no reflection": {**after["greedy"], "accuracy_by_turn": [0.5, 0.55]}}
    make(tmp_path / "controlled", seeded(0), [("after", 4, after)])
    [entry] = entries(tmp_path, "controlled")
    assert row(entry, "turn 2, no reflection").after.value == 0.55


def test_runs_of_different_environments_stand_in_sections_of_their_own(runs: Path):
    found = compare.sections(entries(runs, "tries-0", "craft", "grpo"))
    assert {name: [entry.label for entry in part] for name, part in found.items()} == {
        "signs": ["tries-0", "grpo"],
        "minicraft": ["craft"],
    }


def test_runs_that_go_on_or_were_only_evaluated_are_shown_as_far_as_they_are(runs: Path):
    craft, new = entries(runs, "craft", "new")
    assert row(craft, "success").after.value == 0.5
    assert any("running or interrupted" in fact for fact in craft.facts())
    assert new.rows() == [] and "no evaluation yet" in new.facts()
    console = Console(record=True, width=140)
    console.print(compare.terminal([new], 140))
    assert re.search(r"new\s+-\s+-\s+-\s+-", console.export_text())


def test_evaluations_that_a_checkpoint_got_later_do_not_stand_in_for_the_one_after_training(runs: Path):
    with (runs / "tries-0" / "evaluations.jsonl").open("a") as stream:
        stream.write(json.dumps({"label": "eval", "step": 2} | answers([0.0, 0.0, 0.0])) + "\n")
    assert by_turn(compare.read(runs / "tries-0").after) == [0.5, 0.6, 0.7]


def test_runs_without_a_recipe_are_never_taken_for_seeds_of_one(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert len(entries(tmp_path, "a", "b")) == 2


def test_two_entries_never_have_one_label(runs: Path, tmp_path: Path):
    make(tmp_path / "other" / "grpo", seeded(0), [])
    found = compare.pool([compare.read(folder) for folder in (runs / "grpo", tmp_path / "other" / "grpo")])
    assert [entry.label for entry in found] == ["grpo", "grpo (2)"]


def test_the_page_holds_every_figure_and_needs_nothing_but_itself(runs: Path, tmp_path: Path):
    found = entries(runs, *sorted(folder.name for folder in runs.iterdir()))
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for fact in (
        "retry × turnwise × awr",
        "0.750 ± 0.020 (0.029)",
        "success after an error",
        "pass@5 → any of 3 turns",
    ):
        assert fact in text, fact
    assert text.count("<svg") == 3 + 2  # signs has turns, minicraft does not
    assert not re.findall(r"""(?:src|href)\s*=\s*["'][^"'#]|url\((?!#)|@import|<script|<link""", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    ids = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_names_from_a_run_cannot_become_markup(runs: Path, tmp_path: Path):
    recipe = seeded(0, environment={"name": "<b>x</b>", "feedback": "<script>"})
    make(tmp_path / "marked", recipe, [("before", 0, answers([0.3, 0.2]))])
    write_page(entries(tmp_path, "marked"), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text and "<script" not in text and "<b>x" not in text


def test_a_page_that_cannot_be_written_is_refused_with_the_option(runs: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="--out"):
        write_page(entries(runs, "grpo"), tmp_path / "nowhere" / "page.html")


def test_the_command_shows_runs_by_name_once_each_and_refuses_unknown_ones(runs: Path, monkeypatch):
    monkeypatch.chdir(runs.parent)
    shown = CliRunner().invoke(app, ["compare", "tries-0", "runs/tries-0", "--out", "both.html"])
    assert shown.exit_code == 0 and (runs.parent / "both.html").exists()
    assert shown.output.count("pass@5") == 1
    unknown = CliRunner().invoke(app, ["compare", "tries-0", "nothing"])
    assert isinstance(unknown.exception, SettingError) and "nothing" in str(unknown.exception)


def test_values_that_are_missing_in_some_seeds_are_left_out_of_the_mean(runs: Path):
    (runs / "tries-2" / "evaluations.jsonl").write_text("")
    [entry] = entries(runs, "tries-0", "tries-1", "tries-2")
    assert row(entry, "turn 3").after.value == pytest.approx(np.mean([0.7, 0.8]))
