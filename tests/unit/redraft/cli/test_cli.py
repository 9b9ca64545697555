"""The command line refuses what cannot work, at once and in one line that names the key."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import PYTHONPATH, ROOT
from support.waiting import deadline_s

from redraft.cli.main import main

QUICKSTART, GSM8K = (str(ROOT / "recipes" / f"{name}.yaml") for name in ("quickstart", "gsm8k-grpo"))
COUNTDOWN = ("environment={name: countdown}", "data={train_size: 9, test_size: 9}")
Redraft = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def redraft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Redraft:
    """The command in a folder of its own, in this process: one that starts costs two seconds of imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["redraft", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, said.out, said.err)

    return run


def test_a_folder_of_runs_that_cannot_be_is_refused_before_a_model_is_made(redraft, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder of all runs would be")
    ended = redraft("train", QUICKSTART)
    assert ended.returncode == 2 and "runs cannot be written" in ended.stderr.strip().splitlines()[-1]
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(PermissionError(13, "not yours", "runs/x"), 2), (ConnectionError("x"), 75)]
)
def test_what_the_system_says_of_files_and_faults_is_one_line_and_its_trace_is_kept(
    redraft, tmp_path, monkeypatch, error, code
):
    def fails(name):
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("redraft.run.find", fails)
    ended = redraft("report", "x")
    [line], [trace] = ended.stderr.strip().splitlines(), tmp_path.glob("redraft-*.trace")
    assert ended.returncode == code and line == f"redraft: {error} (the trace is in {trace})"
    assert "Traceback" in trace.read_text()


def test_an_error_that_nobody_foresaw_shows_its_trace(redraft, monkeypatch):
    monkeypatch.setattr("redraft.run.find", lambda name: {}[name])
    ended = redraft("report", "x")
    assert ended.returncode == 70 and "KeyError: 'x'" in ended.stderr and "Traceback" in ended.stderr


def test_a_process_of_its_own_says_the_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "redraft", "train", QUICKSTART, "environment.name=chess"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=deadline_s(30), env=environment
    )
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and "environment.name" in ended.stderr, ended


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", QUICKSTART, "learner.nonsense=1"], ["learner.nonsense", "batch_groups"]),
        (["train", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["train", QUICKSTART, "model={path: nowhere/at/all}"], ["model.path"]),
        (["train", GSM8K, "data.path=nowhere"], ["data.path", "nowhere"]),
        (["train", QUICKSTART, "environment.name=chess"], ["environment.name", "signs"]),
        (["train", QUICKSTART, "environment.feedback=loud"], ["environment.feedback", "residual"]),
        (["train", QUICKSTART, *COUNTDOWN, "curriculum={window: 9}"], ["curriculum", "level"]),
        (["train", QUICKSTART, "learner.credit={name: no.such:credit}"], ["learner.credit.name", "no.such:credit"]),
        (["train", QUICKSTART, "learner.objective={name: no.such:Loss}"], ["learner.objective.name", "no.such:Loss"]),
        (["train", QUICKSTART, "tracking={wandb: {project: mine}}"], ["tracking.wandb", "pip install wandb"]),
        (["train", QUICKSTART, "--resume"], ["quickstart", "no run"]),
        (["train", QUICKSTART, "--resume", "--again"], ["--resume", "--again", "one of them"]),
        (["train", QUICKSTART, "--resume-if-begun", "tracking={wandb: {project: mine}}"], ["pip install wandb"]),
        (["eval", "nothing"], ["nothing", "no run"]),
        (["status", "nothing"], ["nothing", "no run"]),
        (["stop", "nothing"], ["nothing", "no run"]),
        (["scale", "nothing", "2"], ["nothing", "no run"]),
        (["scale", "nothing", "0"], ["N: ", "at least 1, got 0"]),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_starts(redraft, tmp_path, arguments, words):
    ended = redraft(*arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and all(word in ended.stderr for word in words), ended.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".cache").exists()


def test_a_dry_run_prints_a_recipe_that_can_be_used_and_starts_nothing(redraft, tmp_path):
    printed = redraft("train", QUICKSTART, "steps=7", "--dry-run").stdout
    (tmp_path / "again.yaml").write_text(printed)
    assert "steps: 7" in printed and redraft("train", "again.yaml", "--dry-run").stdout == printed
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_is_what_resume_if_begun_resumes(redraft, tmp_path):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "a", "model": "m"}')
    (folder / "recipe.yaml").write_text(redraft("train", QUICKSTART, "--dry-run").stdout)
    ended = redraft("train", QUICKSTART, "--resume-if-begun", "seed=9")
    assert ended.returncode == 2 and "seed: 9, but the run quickstart began with 0" in ended.stderr


@pytest.mark.parametrize("command", ["eval", "chat"])
@pytest.mark.parametrize(
    "override", ["model.template={kwargs: {a: 1}}", "learner.batch_groups=9", "replay.max_uses=2", "steps=9", "name=b"]
)
def test_a_setting_that_can_change_nothing_about_a_trained_model_is_refused(redraft, tmp_path, command, override):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "a", "model": "m"}')
    (folder / "recipe.yaml").write_text(redraft("train", QUICKSTART, "--dry-run").stdout)
    ended = redraft(command, "quickstart", "sampling.temperature=0.5", "environment.feedback=binary", override)
    key = override.partition("=")[0]
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1
    assert f"{key}: has no effect on `redraft {command}`" in ended.stderr and "sampling" in ended.stderr
    allowed = redraft(command, "quickstart", "sampling.temperature=0.5", "model.dtype=float32")
    assert "no such checkpoint" in allowed.stderr, "that is what is looked for next"


def test_an_existing_run_is_refused_before_a_model_is_made(redraft, tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    ended = redraft("train", QUICKSTART)
    assert ended.returncode == 2 and "--resume" in ended.stderr
    assert not (tmp_path / ".cache").exists()
