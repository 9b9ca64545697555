"""What a report promises: one file without a network, from whatever a run has written so far, with nothing left out."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from support.browser import width_of

from protocols.evaluation import EvaluationSummary
from redraft.report.headline import headline
from redraft.report.page import write_report
from redraft.report.tables import WITH_FEEDBACK

RECIPE = """
name: tries <b>
steps: 3
model: {make: {layers: 3, hidden: 96}, dtype: float32}
environment: {name: signs, feedback: residual}
rollout: {name: retry, turns: 2}
"""


def summary(right: float) -> dict:
    figures = {
        "accuracy_by_turn": [right, right / 2],
        "keep_rate": right,
        "fix_rate": None,
        "repeat_rate": 0.25,
        "majority_turns": right,
        "any_turn": right,
    }
    se = {key: [0.01, 0.02] if isinstance(value, list) else value and 0.01 for key, value in figures.items()}
    firsts = {"majority_k": right, "pass_k": right}
    return {
        "kind": "answers",
        "n": 50,
        "turns": 2,
        "k": 5,
        **figures,
        **firsts,
        "se": se | dict.fromkeys(firsts, 0.01),
        "errors": 0,
        "generations": {"sampled": 150, "independent": 200, "greedy": 150},
        "greedy": figures | {"se": se},
        "controls": {"no reflection": figures | {"se": se}},
    }


def acted(success: float, after_error: float | None = 0.1) -> dict:
    """The summary of an evaluation of many actions."""
    figures = {
        "success": success,
        "success_after_error": after_error,
        "error_share": 0.4,
        "loop_rate": 0.05,
        "actions": 5.5,
    }
    se = {key: value and 0.02 for key, value in figures.items()}
    return {
        "kind": "actions",
        "n": 50,
        "turns": 8,
        "k": 5,
        **figures,
        "pass_k": 0.7,
        "se": se | {"pass_k": 0.02},
        "errors": 1,
        "generations": {"sampled": 275},
        "greedy": figures | {"se": se},
        "controls": {},
    }


def step(number: int, reward: float = 0.5) -> dict:
    return {
        "step": number,
        "version": number,
        "loss": 1.0 / number,
        "entropy": 0.5,
        "gradient_norm": None if number == 2 else 1.0,
        "mismatch_mean": 0.01,
        "cut_share": {"attempt": 0.5},
        "unparsed_share": {"attempt": 0.25},
        "response_tokens": {"attempt": {"mean": 20.0, "p50": 19.0, "max": 32}},
        "mismatch_max": 0.2,
        "reward_by_index": [reward, reward],
        "staleness_mean": 0.5,
        "staleness_max": 1,
        "seconds": {"wait": 0.1, "pack": 0.01, "train": 1.0, "gather": 0.1, "publish": 0.1, "commit": 0.01},
        "time_s": 2.0 * number,
        "tokens_per_s": 1000.0,
    }


def write(folder: Path, file: str, *lines: dict) -> None:
    (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write(tmp_path, "metrics.jsonl", step(1), step(2), step(3))
    before = {"step": 0, "version": 0, "label": "before", "seconds": 1.0} | summary(0.3)
    after = {"step": 3, "version": 3, "label": "after", "seconds": 1.0} | summary(0.6)
    write(tmp_path, "evaluations.jsonl", before, after)
    done = {"name": "tries <b>", "state": "done", "error": "", "steps": 3, "seconds": 75.0}
    write(tmp_path, "summary.json", done | {"before": summary(0.3), "after": summary(0.6)})
    return tmp_path


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_a_report_says_what_ran_what_came_of_it_and_what_that_does_not_mean(run_dir: Path):
    page = page_of(run_dir)
    for fact in ("3 of 3", "1 min 15 s", "residual", "0.300 ± 0.010", "0.600 ± 0.010", "+0.300 ± 0.014", "pass@5"):
        assert fact in page, fact
    assert WITH_FEEDBACK.replace("'", "&#x27;") in page
    assert page.count("<svg") == 8


def test_a_report_needs_nothing_but_itself(run_dir: Path):
    page = page_of(run_dir)
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)|url\((?!#)([^)]*)\)|@import|<script|<link""", page)
    assert not fetched
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_ids_of_different_plots_differ(run_dir: Path):
    clips = re.findall(r'<clipPath id="([^"]+)"', page_of(run_dir))
    assert len(clips) == len(set(clips)) > 0


def test_text_from_a_run_cannot_become_markup(run_dir: Path):
    failed = {"name": "tries <b>", "state": "failed", "error": "actor-1: <script>alert(1)</script>"}
    write(run_dir, "summary.json", failed)
    page = page_of(run_dir)
    assert "tries &lt;b&gt;" in page and "tries <b>" not in page
    assert "<script" not in page and "&lt;script&gt;" in page


def test_any_file_may_be_missing(tmp_path: Path):
    assert "no evaluation yet" in page_of(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write(tmp_path, "metrics.jsonl", step(1))
    page = page_of(tmp_path)
    assert "running or interrupted" in page and "1 of 3" in page


def test_lines_that_are_still_being_written_are_left_out(run_dir: Path):
    for file in ("metrics.jsonl", "evaluations.jsonl", "summary.json"):
        with open(run_dir / file, "a") as stream:
            stream.write('{"step": 4, "lo')
    page = page_of(run_dir)
    assert "3 of 3" in page and "0.600 ± 0.010" in page


def test_steps_that_a_resumed_run_played_again_count_once(run_dir: Path):
    write(run_dir, "metrics.jsonl", step(1), step(2), step(3), step(2))
    (run_dir / "summary.json").unlink()
    assert "2 of 3" in page_of(run_dir)


def test_named_parts_of_the_reward_get_a_plot_where_there_are_some(run_dir: Path):
    assert "Parts of the reward" not in write_report(run_dir).read_text()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    parted = [json.dumps(line | {"reward_parts": {"right": 0.5, "short": 0.1}}) for line in lines]
    (run_dir / "metrics.jsonl").write_text("\n".join(parted) + "\n")
    page = write_report(run_dir).read_text()
    assert "Parts of the reward" in page and "short" in page.partition("Parts of the reward")[2]


def test_evaluations_of_checkpoints_get_a_plot(run_dir: Path):
    lines = [{"step": n, "label": "eval" if n else "before", **summary(0.3 + n / 10)} for n in range(3)]
    write(run_dir, "evaluations.jsonl", *lines)
    assert "Accuracy over training" in page_of(run_dir)


def test_a_report_of_many_actions_says_success_errors_loops_and_the_control(run_dir: Path):
    lines = [{"step": n, "label": "eval" if n else "before", **acted(0.3 + n / 10, None if n else 0)} for n in range(3)]
    write(run_dir, "evaluations.jsonl", *lines)
    page = page_of(run_dir)
    for fact in ("success after an error", "share with a loop", "any of 5 independent episodes", "+0.200 ± 0.028"):
        assert fact in page, fact
    assert "Success over training" in page and "Accuracy" not in page and "keep rate" not in page


def test_controls_and_what_passes_cost_are_in_the_report(run_dir: Path):
    page = page_of(run_dir)
    assert "control: no reflection" in page
    assert "sampled 3.0, independent 4.0, greedy 3.0" in page


def test_until_training_ends_the_latest_checkpoint_that_was_evaluated_stands_beside_the_start(run_dir: Path):
    lines = [{"step": n, "label": label, **summary(n / 10)} for n, label in ((0, "before"), (8, "eval"), (5, "eval"))]
    write(run_dir, "evaluations.jsonl", *lines)
    page = page_of(run_dir)
    results = page.partition("Evaluations of checkpoints")[0]
    assert "step 8" in results and "0.800 ± 0.010" in results and "0.500 ± 0.010" not in results


def test_the_headline_is_the_last_answer_before_and_after_with_the_first_beside_it(run_dir: Path):
    page = page_of(run_dir)
    assert '<p class="headline">last answer right: 15 % -&gt; 30 % (first answer: 30 % -&gt; 60 %)</p>' in page
    assert headline(EvaluationSummary.from_json(summary(0.3)), None) == "last answer right: 15 % (first answer: 30 %)"
    assert headline(*map(EvaluationSummary.from_json, (acted(0.3), acted(0.5)))) == "success: 30 % -> 50 %"
    once = EvaluationSummary.from_json(
        summary(0.4) | {"turns": 1, "accuracy_by_turn": [0.4], "se": {"accuracy_by_turn": [0.01]}}
    )
    assert headline(once, once) == "answer right: 40 % -> 40 %"
    assert headline(None, None) == ""


def test_a_report_says_when_where_and_by_which_version_it_was_run(run_dir: Path):
    origin = {"began": "2031-02-03T04:05:06+01:00", "version": "1.2.3", "machine": "Xeon, 2 cores, 24 GiB, no GPU"}
    write(run_dir, "run.json", origin)
    page = page_of(run_dir)
    told = origin | {"began": "2031-02-03 04:05 UTC+01:00"}
    assert all(f"<dd>{fact}</dd>" in page for fact in told.values())


def test_evaluations_that_were_asked_for_later_are_listed_each(run_dir: Path):
    assert "Evaluations of checkpoints" not in page_of(run_dir)
    with open(run_dir / "evaluations.jsonl", "a") as stream:
        for right in (0.5, 0.7):
            stream.write(json.dumps({"step": 3, "label": "eval", **summary(right)}) + "\n")
    page = page_of(run_dir)
    results, _, later = page.partition("Evaluations of checkpoints")
    assert "0.600 ± 0.010" in results and "0.700" not in results, "what was measured after training stays the result"
    for right in (0.5, 0.7):
        cells = f"<td>50</td><td>2</td><td>{right:.3f} ± 0.010</td><td>{right / 2:.3f} ± 0.020</td>"
        assert f"<tr><th>step 3</th>{cells}" in later


def test_steps_that_trained_nothing_leave_gaps_and_no_zero(run_dir: Path):
    keys = ("loss", "entropy", "gradient_norm", "mismatch_mean", "mismatch_max", "staleness_mean", "staleness_max")
    by_role = ("cut_share", "unparsed_share", "response_tokens")
    nothing = step(1) | dict.fromkeys(keys) | dict.fromkeys(by_role, {}) | {"reward_by_index": []}
    for lines in ((nothing,), (step(1), nothing | {"step": 2})):
        write(run_dir, "metrics.jsonl", *lines)
        assert page_of(run_dir).count("<svg") == 8


@pytest.mark.browser
def test_on_a_telephone_nothing_of_the_page_lies_beside_the_screen(run_dir: Path):
    long = {"name": "tries-with-a-name-that-is-longer-than-any-line-on-a-telephone", "state": "failed"}
    write(run_dir, "summary.json", long | {"error": "/a/folder/of/a/name/that/is/long/and/that/has/no/blank/in/it"})
    with open(run_dir / "evaluations.jsonl", "a") as stream:
        stream.write(json.dumps({"step": 3, "label": "eval", **summary(0.5)}) + "\n")
    assert width_of(write_report(run_dir), screen=360) == 360


def test_an_evaluation_of_something_else_is_listed_with_what_it_was_told_and_is_no_result_of_the_run(run_dir: Path):
    told = {"during": [], "eval": ["evaluation.n=9"]}, {"during": [], "eval": ["environment.name=countdown"]}
    for overrides, results in zip(told, (0.9, 0.7), strict=True):
        lines = [
            {"step": step, "label": label, "overrides": overrides.get(label, []), **summary(right)}
            for step, label, right in ((0, "before", 0.3), (3, "during", 0.7), (3, "eval", 0.9))
        ]
        write(run_dir, "evaluations.jsonl", *lines)
        page = page_of(run_dir)
        before, _, later = page.partition("Evaluations of checkpoints")
        assert f"{results:.3f} ± 0.010" in before and f"{1.6 - results:.3f} ± 0.010" not in before
        assert all(word in later for word in ("0.700 ± 0.010", "0.900 ± 0.010", *overrides["eval"]))
