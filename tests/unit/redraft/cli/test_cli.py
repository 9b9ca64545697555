"""The command line refuses what cannot work, at once and in one line that names the key."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import ROOT
from support.waiting import deadline_s

QUICKSTART, GSM8K = (str(ROOT / "recipes" / f"{name}.yaml") for name in ("quickstart", "gsm8k-grpo"))
COUNTDOWN = ("environment={name: countdown}", "data={train_size: 9, test_size: 9}")
AT_ONCE_S = 30  # generous for a busy machine: nothing has been started or made by then


def redraft(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "redraft", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=deadline_s(AT_ONCE_S),
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


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
        (["scale", "nothing", "0"], ["N: must be at least 1", "got 0"]),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_starts(tmp_path, arguments, words):
    began = time.monotonic()
    ended = redraft(tmp_path, *arguments)
    print(f"{time.monotonic() - began:.1f} s: {ended.stderr.strip()}")
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and all(word in ended.stderr for word in words), ended.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".cache").exists()


def test_a_dry_run_prints_a_recipe_that_can_be_used_and_starts_nothing(tmp_path):
    printed = redraft(tmp_path, "train", QUICKSTART, "steps=7", "--dry-run").stdout
    (tmp_path / "again.yaml").write_text(printed)
    assert "steps: 7" in printed and redraft(tmp_path, "train", "again.yaml", "--dry-run").stdout == printed
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_is_what_resume_if_begun_resumes(tmp_path):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "a", "model": "m"}')
    (folder / "recipe.yaml").write_text(redraft(tmp_path, "train", QUICKSTART, "--dry-run").stdout)
    ended = redraft(tmp_path, "train", QUICKSTART, "--resume-if-begun", "seed=9")
    assert ended.returncode == 2 and "seed: the run quickstart began with another value" in ended.stderr


def test_an_existing_run_is_refused_before_a_model_is_made(tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    ended = redraft(tmp_path, "train", QUICKSTART)
    assert ended.returncode == 2 and "--resume" in ended.stderr
    assert not (tmp_path / ".cache").exists()
