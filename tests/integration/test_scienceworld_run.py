"""A run on scienceworld whose JVM is killed goes on: its episodes are counted, and the cause is said once."""

from __future__ import annotations

import json
import os
import signal

import pytest
import yaml
from support.run_house import Command

RECIPE = {
    "name": "killed",
    "steps": 6,
    "model": {"dtype": "float32", "make": {"tokenizer": "bytes", "max_length": 16384, "pretrain": None}},
    "data": {"path": "find-living-thing, boil", "test_size": 2},
    "environment": {"name": "scienceworld", "instances": 4, "time_limit_s": 120, "options": {"nearest": True}},
    "rollout": {"name": "act", "turns": 4, "episodes": 2},
    "sampling": {"max_tokens": 8},
    "actors": {"count": 1, "groups": 4, "engine": {"max_length": 12288, "max_running": 8}},
    "replay": {"drop_flat": False},
    "learner": {
        "batch_groups": 2,
        "max_staleness": 4,
        "row_tokens": 12288,
        "micro_tokens": 12288,
        "credit": {"name": "raw"},
        "objective": {"name": "awr"},
    },
    "evaluation": {"n": 2, "independent": 1, "greedy": False},
}


@pytest.mark.prove
@pytest.mark.java
@pytest.mark.vllm
@pytest.mark.ray
def test_a_jvm_killed_in_a_run_costs_its_episodes_and_the_run_ends_as_it_should(tmp_path):
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(RECIPE))
    command = Command(tmp_path, "train", "killed.yaml")
    command.until(lambda: len(command.steps("killed")) >= 1, 240)
    first = command.part("scienceworld.jar")
    os.kill(first.pid, signal.SIGKILL)
    command.until(lambda: (jvm := command.part("scienceworld.jar")) and jvm.pid != first.pid, 60)
    command.wait(240)
    assert command.process.returncode == 0 and max(command.steps("killed")) == RECIPE["steps"]
    logs = "\n".join(path.read_text() for path in (tmp_path / "runs" / "killed" / "logs").glob("*.log"))
    assert logs.count("ScienceWorld's Java process has ended") == 1
    lines = [json.dumps(line) for line in command.lines("killed", "metrics.jsonl")]
    print(logs[-1500:], *lines[-2:], sep="\n")
