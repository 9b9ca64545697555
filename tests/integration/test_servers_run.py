"""A run goes on whatever becomes of the servers that its environments ask: killed and started again, too slow, full.
What broke off is counted, and each cause is said once."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support import processes
from support.places import PYTHONPATH
from support.run_house import Command
from support.waiting import until

from redraft import records

pytestmark = [pytest.mark.prove, pytest.mark.ray, pytest.mark.vllm]

LIMIT_S = 240.0
STEPS = 20
MODEL = {"dtype": "float32", "make": {"tokenizer": "bytes", "max_length": 2048, "pretrain": None}}
RECIPE = {
    "steps": STEPS,
    "model": MODEL,
    "rollout": {"name": "act", "turns": 2, "episodes": 4},
    "sampling": {"max_tokens": 8},
    "actors": {"count": 1, "groups": 6, "engine": {"max_length": 1024, "max_running": 32}},
    "learner": {
        "batch_groups": 2,
        "max_staleness": 8,
        "row_tokens": 1024,
        "micro_tokens": 4096,
        "credit": {"name": "raw"},
        "objective": {"name": "awr"},
    },
    "evaluation": {"n": 2, "independent": 1, "greedy": False},
}


def started(file: Path, kind: str, port: int = 0) -> tuple[processes.subprocess.Popen, int]:
    """A server, and its port."""
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "support.agentgym_house", str(file), kind, str(port)]
    process = processes.start(command, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    until(file.exists, "the server has a port")
    return process, int(file.read_text())


def played(port: int, **options) -> dict:
    options = {"server": f"http://127.0.0.1:{port}", "steps": 2, "patience_s": 0.5} | options
    return {"name": "agentgym", "data": {"path": "0-199"}, "options": options}


def logged(run: Command, name: str) -> Counter:
    """How often each cause is said, with its numbers left out."""
    texts = [path.read_text() for path in (run.folder / "runs" / name / "logs").glob("actor-*.log")]
    said = re.findall(r"an episode ended \(\w+\): (.*); this cause", "\n".join(texts))
    return Counter(re.sub(r"\d+", "#", cause) for cause in said)


def found(run: Command) -> Counter:
    """How often each cause was found: its line at the end is that at its beginning, with the time."""
    return Counter(finding.cause for finding in records.findings(run.folder / "runs" / "killed"))


def test_a_server_that_is_killed_and_comes_again_costs_the_groups_of_that_time(tmp_path):
    server, port = started(tmp_path / "server", "plain")
    recipe = RECIPE | {"name": "killed", "environment": {k: v for k, v in played(port).items() if k != "data"}}
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(recipe | {"data": {"path": "0-199"}}))
    run = Command(tmp_path, "train", "killed.yaml")
    run.until(lambda: len(run.steps("killed")) >= 2, LIMIT_S)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    run.until(lambda: {"episodes_broken", "endpoint_down"} <= found(run).keys(), LIMIT_S)
    before = len(run.steps("killed"))
    started(tmp_path / "server", "plain", port)
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and run.steps("killed") == list(range(1, STEPS + 1)), output[-3000:]
    assert before < STEPS, "it waited for the server"
    causes = logged(run, "killed")
    assert causes and set(causes.values()) == {1}, causes
    assert any("/create" in cause for cause in causes), causes
    told = found(run)
    assert told["episodes_broken"] == told["endpoint_down"] == 1, "said in the live view, with their number"


def test_a_server_that_answers_after_a_minute_and_one_that_ends_the_fifth_session_cost_their_episodes(tmp_path):
    (_, slow), (_, full) = (started(tmp_path / kind, kind) for kind in ("slow", "breaks"))
    (_, plain) = started(tmp_path / "plain", "plain")
    environments = [
        played(plain) | {"label": "plain"},
        played(slow, timeout_s=1.0) | {"label": "slow"},
        played(full) | {"label": "full"},
    ]
    recipe = RECIPE | {"name": "several", "environments": environments, "steps": 4}
    (tmp_path / "several.yaml").write_text(
        yaml.safe_dump(recipe | {"evaluation": {"n": 6, "independent": 1, "greedy": False}})
    )
    run = Command(tmp_path, "train", "several.yaml")
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and run.steps("several") == [1, 2, 3, 4], output[-3000:]
    causes = logged(run, "several")
    assert set(causes.values()) == {1}, causes
    for cause in ("no answer to /step: ReadTimeout", "no answer to /create: RemoteProtocolError"):
        assert any(cause in said for said in causes), causes
    trained = [line["groups_by_environment"] for line in run.lines("several", "metrics.jsonl")]
    assert not any("slow" in groups for groups in trained), "of its groups nothing is known"
