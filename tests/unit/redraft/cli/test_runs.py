"""`redraft runs` shows every folder, also broken ones; `prune` removes none that lives, is read, or is stood on."""

from __future__ import annotations

import fcntl
import json
import os
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from learner import checkpoint
from protocols.errors import SettingError
from protocols.evaluation import AnswerFigures, EvaluationLine, EvaluationSummary, Figure
from protocols.reports import RunEnded
from redraft import prune
from redraft.cli.runs import app
from redraft.report import inventory
from redraft.run import Run

NOW = time.time()


def made(name: str, state: str | None = "done", days: float = 0.0, model: str = "/models/m") -> Path:
    run = Run(Path("runs") / name, name * 2, model, began=datetime.fromtimestamp(NOW - days * 86400).isoformat())
    run.folder.mkdir(parents=True)
    run.save()
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"path": model}}))
    if state is not None:
        run.write("summary.json", RunEnded(name, state).to_json())
    return run.folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def redraft_runs(*arguments: str):
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def several():
    done = made("done", days=3)
    figures = AnswerFigures(accuracy_by_turn=(Figure(0.3, 0.1), Figure(0.82, 0.1)))
    summary = EvaluationSummary(n=10, turns=2, k=1, sampled=figures)
    run = Run(done, "donedone", "/models/m")
    run.append("evaluations.jsonl", EvaluationLine("after", 7, 7, 1.0, summary).to_json())
    for step in (6, 7):
        run.append("metrics.jsonl", {"step": step})
    with (done / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "half')
    with (done / "spool").open("wb") as spool:
        spool.truncate(1 << 30)  # a hole, as in the map of a spool
    os.link(done / "metrics.jsonl", done / "held")
    made("stopped", "stopped", days=0.5)
    made("killed", None, days=0.1)
    alive = made("alive", None)
    torn, empty = made("torn"), Path("runs/empty")
    (torn / "run.json").write_text('{"id": "a", "mod')
    empty.mkdir()
    (Path("runs") / ".mine.0123abcd").mkdir()
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_the_table_has_each_run_with_its_state_step_figure_age_and_size_and_says_what_is_broken(several):
    found = {entry.name: entry for entry in inventory.read_all(Path("runs"))}
    assert {name: entry.state for name, entry in found.items()} == {
        "alive": "running",
        "killed": "crashed",
        "stopped": "stopped",
        "done": "done",
        "empty": "broken",
        "torn": "broken",
    }
    assert list(found)[:4] == ["alive", "killed", "stopped", "done"], "the newest first"
    assert (found["done"].step, found["killed"].step) == (7, None)
    assert found["done"].figure.endswith(": 82 %")
    assert 0 < found["done"].bytes < 1 << 20, "what its files take, holes not, and one of two names once"
    assert found["empty"].problem == "it has no run.json" and found["torn"].problem
    shown = redraft_runs()
    assert shown.exit_code == 0 and "3 d" in shown.output and "broken: it has no run.json" in shown.output
    assert {entry["name"] for entry in json.loads(redraft_runs("--json").output)} == set(found)


def test_no_runs_are_said_to_be_none():
    shown = redraft_runs()
    assert shown.exit_code == 0 and "no runs in" in shown.output


def test_what_is_pruned_is_gone_and_a_living_or_read_run_is_refused(several):
    assert redraft_runs("prune", "done", "torn", "--yes").exit_code == 0
    assert not Path("runs/done").exists() and not Path("runs/torn").exists()
    refused = redraft_runs("prune", "alive", "--yes")
    assert isinstance(refused.exception, SettingError) and "in use" in str(refused.exception)
    with (Path("runs/stopped") / "readers").open("w") as readers:
        fcntl.flock(readers, fcntl.LOCK_SH)
        refused = redraft_runs("prune", "stopped", "--yes")
    assert isinstance(refused.exception, SettingError) and "being read" in str(refused.exception)
    assert sorted(path.name for path in Path("runs").iterdir() if path.name[0] != ".") == [
        "alive",
        "empty",
        "killed",
        "stopped",
    ]


def test_nothing_goes_where_nobody_says_yes(several, monkeypatch):
    refused = redraft_runs("prune", "done")
    assert isinstance(refused.exception, SettingError) and refused.exception.setting == "--yes"
    monkeypatch.setattr("redraft.cli.runs.sys", type("Tty", (), {"stdin": type("In", (), {"isatty": lambda: True})}))
    assert CliRunner().invoke(app, ["prune", "done"], input="n\n").exit_code == 1
    assert Path("runs/done").exists()
    assert CliRunner().invoke(app, ["prune", "done"], input="y\n").exit_code == 0
    assert not Path("runs/done").exists()


def test_by_age_go_those_that_have_ended_and_began_so_long_ago(several):
    assert redraft_runs("prune", "--older", "0.4", "--yes").exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir() if path.name[0] != ".") == [
        "alive",
        "empty",
        "killed",
        "torn",
    ]
    assert "nothing to remove" in redraft_runs("prune", "--older", "9").output
    for arguments, setting in ((["prune"], "RUN"), (["prune", "nobody", "--yes"], "RUN")):
        refused = redraft_runs(*arguments)
        assert isinstance(refused.exception, SettingError) and refused.exception.setting == setting


def test_a_run_that_keeps_its_best_checkpoint_is_not_removed_for_its_age_but_by_its_name(several):
    done = Path("runs/done")
    for step in (2, 4):
        (done / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    checkpoint.mark(done, best=2, evaluated=None)
    kept = redraft_runs("prune", "--older", "0.4", "--yes")
    assert "done stays: it keeps its best checkpoint, step-000002" in kept.output
    assert checkpoint.best(done) == done / "checkpoints" / "step-000002" and not Path("runs/stopped").exists()
    assert redraft_runs("prune", "done", "--older", "0.4", "--yes").exit_code == 0 and not done.exists()


@pytest.mark.parametrize("uses", ["runs/base/checkpoints/step-000001/model", "runs/base"])
def test_a_run_that_another_stands_on_stays_until_that_has_a_model_of_its_own_or_goes_too(uses):
    base = made("base")
    (base / "checkpoints" / "step-000001" / "model").mkdir(parents=True)
    later = made("later", model=str(Path(uses).resolve()))
    refused = redraft_runs("prune", "base", "--yes")
    assert isinstance(refused.exception, SettingError), refused.output
    assert "the run later stands on base" in str(refused.exception) and base.exists()
    (later / "model").mkdir()
    prune.check([base], [base, later])
    (later / "recipe.yaml").write_text(yaml.safe_dump({"data": {"failures": "runs/base/run.json"}}))
    with pytest.raises(SettingError, match="uses .*runs/base/run.json"):
        prune.check([base], [base, later])
    assert redraft_runs("prune", "base", "later", "--yes").exit_code == 0
    assert not list(Path("runs").iterdir())
