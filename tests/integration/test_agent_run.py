"""A run that trains an agent, stopped by Ctrl-C in the middle of its episodes, leaves none of the agent's processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support.run_house import Command
from support.storm_house import RECIPE
from support.waiting import deadline_s, until

pytestmark = [pytest.mark.prove, pytest.mark.ray]
SLEEPS = ["sleep", f"8{os.getpid()}"]  # what the agent starts, and never ends by itself
AGENT = f"""
import json, sys
import openai
import subprocess; subprocess.Popen({SLEEPS!r})
client = openai.OpenAI()
said = [{{"role": "user", "content": sys.argv[1]}}]
for turn in range(2):
    came = client.chat.completions.create(model="redraft", messages=said).choices[0].message.content
    said += [{{"role": "assistant", "content": came}}, {{"role": "user", "content": "again"}}]
print(json.dumps({{"reward": len(came) / 10}}))
"""


def sleeping() -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == SLEEPS]


def test_ctrl_c_in_the_middle_of_episodes_leaves_nothing_that_agents_started(tmp_path: Path):
    (tmp_path / "agent.py").write_text(AGENT)
    rollout = {"name": "agent", "run": [sys.executable, str(tmp_path / "agent.py"), "{task.question}"], "episodes": 2}
    actors = RECIPE["actors"] | {"count": 1, "groups": 4}
    learner = RECIPE["learner"] | {"batch_groups": 2}
    recipe = RECIPE | {
        "name": "mine",
        "rollout": rollout | {"processes": 2},
        "actors": actors,
        "learner": learner,
        "evaluation": {"n": 1, "independent": 1, "greedy": False},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    run = Command(tmp_path, "train", "mine.yaml")
    run.until(lambda: run.steps("mine") and sleeping(), 300)
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    said = run.wait(120)
    assert run.process.returncode == 0 and run.summary("mine")["state"] == "stopped", said[-3000:]
    _, alive = psutil.wait_procs(children, timeout=deadline_s(30))
    assert not alive, f"left behind: {alive}"
    until(lambda: not sleeping(), "what agents started is gone", 30)
