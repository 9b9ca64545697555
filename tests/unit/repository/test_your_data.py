"""An hour with thirty rows: what docs/your-data.md has people write and type works, with nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.places import PYTHONPATH, ROOT
from support.smollm2 import CACHE, smollm2
from support.waiting import deadline_s

from actors import environments
from protocols import own_code
from redraft import recipe as recipes

TEXT = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
HOUR = TEXT.partition("\n## Rows")[0]
COMMANDS = [line.strip() for line in re.findall(r"^    (\.venv/bin/.*)$", HOUR, re.MULTILINE)]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


def typed(command: str, folder: Path, limit_s: float) -> str:
    """What a command of the page prints, typed in a folder of its own; it has to succeed."""
    program = Path(sys.executable)
    line = command.replace(".venv/bin/python", str(program)).replace(".venv/bin/redraft", f"{program} -m redraft")
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "COLUMNS": "160"}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=deadline_s(limit_s)
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The reader's folder, after the first command, with the two files that the page shows; and one that gets in the
    way of whoever looks for packages there."""
    monkeypatch.chdir(tmp_path)
    own_code.install({})
    typed(COMMANDS[0], tmp_path, 30)
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "replay.py").write_text("raise SystemExit('this is no part of Redraft')\n")
    return tmp_path


def test_the_rows_the_reward_and_the_recipe_of_the_page_fit_together(folder: Path):
    assert [command.split()[1] for command in COMMANDS[1:]] == ["doctor", "train", "report"]
    assert len((folder / "train.jsonl").read_text().splitlines()) == 30 and len(blocks("python")[0].splitlines()) == 5
    recipe = recipes.load(folder / "mine.yaml")
    train, test = (environments.tasks(recipe.environment, recipe.data, split) for split in ("train", "test"))
    assert len(train) + len(test) == 30 and recipe.steps == 3
    environment = environments.make(recipe.environment)
    for said, reward, right in (
        ("It is {}.", 1.2, True),
        ("0", 0.2, False),
        ("{} is what I get, and I am very sure of that", 1, True),
    ):
        environment.reset(seed=0, options={"task": train[0]})
        _, got, _, _, info = environment.step(said.format(train[0]["answer"]))
        assert got == pytest.approx(reward) and info["success"] == right
    assert typed(".venv/bin/redraft train mine.yaml --dry-run", folder, 60)


def test_what_the_page_says_of_a_judge_that_is_asked_is_taken(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    [shown] = [values for values in map(yaml.safe_load, blocks("yaml")) if "judge" in json.dumps(values)]
    recipe = recipes.build(yaml.safe_load(blocks("yaml")[0]) | shown)
    assert environments.make(recipe.environment).longest_s < recipe.environment.time_limit_s


@pytest.mark.prove
@pytest.mark.vllm
@pytest.mark.ray
@pytest.mark.real_model
def test_the_commands_of_the_page_train_a_real_model_for_three_steps(folder: Path):
    smollm2()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "models").symlink_to(CACHE)
    told = ""
    for command in COMMANDS[1:]:
        told += typed(command, folder, 600)
    played = re.search(r"(\d+) of 20 tasks were played", told)
    assert played and int(played[1]) >= 2 and told.count("tokens are trained") >= 2, "as many as come to their end"
    assert '<span class="trained">' in (folder / "doctor.html").read_text()
    run = folder / "runs" / "mine"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(set(line["reward_parts"]) == {"right", "short"} for line in lines)
    assert json.loads((run / "summary.json").read_text())["state"] == "done" and (run / "report.html").exists()
    assert (run / own_code.FOLDER / "mine.py").read_text() == (folder / "mine.py").read_text()
