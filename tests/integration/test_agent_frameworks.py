"""Agents of frameworks play an episode with a tool, each in an environment of its own that pip makes once."""

import fcntl
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.coins import Coins
from support.needs import missing
from support.places import ROOT
from support.rollout_house import House
from support.tokenizers import hermes

from actors.rollout_config import AgentSettings
from protocols import cache

pytestmark = pytest.mark.prove
SCRIPTS = ROOT / "tests/support/frameworks"
TASK = {"id": "t", "tails": 0, "number": 1, "n": 1}
WANTED = {
    "openai_agents": ["openai-agents==0.24.0"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "langgraph": ["langgraph==1.2.24", "langchain==1.5.2", "langchain-openai==1.7.4"],
    "smolagents": ["smolagents[openai]==1.26.0"],
    "dspy": ["dspy==3.4.1"],
    "verifiers_taskset": ["verifiers==0.4.0"],
}
INSTALL_S = 600
CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
ADD = [CALL % ("add", json.dumps(numbers)) for numbers in ({"a": 2, "b": 3}, {"a": 5, "b": 4})]


def python_of(name: str) -> Path:
    """The interpreter of an environment that holds the framework; the test is skipped where pip cannot make it."""
    folder = cache.folder("frameworks") / "-".join(WANTED[name]).replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    whole, python = folder / "whole", folder / "bin/python"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=INSTALL_S)
            command = [python, "-m", "pip", "install", "--quiet", *WANTED[name]]
            came = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
            if came.returncode:
                missing(f"pip cannot install {', '.join(WANTED[name])}: {came.stderr.strip().splitlines()[-1]}")
            whole.touch()
    return python


def play(name: str, says) -> House:
    run = (str(python_of(name)), str(SCRIPTS / f"{name}.py"), "{task.question}")
    settings = AgentSettings(run=run, limit_s=240, processes=1)
    house = House(settings, says, Coins, TASK, tokenizer=hermes(), max_tokens=200, limit_s=300)
    assert not house.failures and house.turns[-1].reward == 1.0
    assert all(house.context(turn) == prompt for turn, prompt in zip(house.turns, house.prompts, strict=True))
    return house


def adds(prompt: str) -> str:
    """Two calls, each after what the tool said to the one before, then the answer."""
    answered = prompt.count("<tool_response>")
    return ADD[answered] if answered < len(ADD) else "it is 9"


@pytest.mark.parametrize(("name", "turns"), [("openai_agents", 3), ("pydantic_ai", 3), ("langgraph", 4)])
def test_what_a_framework_appends_continues_one_path(name, turns):
    house = play(name, adds)
    assert [turn.parent for turn in house.turns] == [-1, *range(turns - 1)]
    assert not any("new_root" in turn.extra for turn in house.turns)


def test_a_taskset_of_verifiers_is_played_and_scored_out_of_process_on_one_path():
    says = iter(["2 and 3 is 5", "it is 9"])
    house = play("verifiers_taskset", lambda prompt: next(says))
    assert [turn.parent for turn in house.turns] == [-1, 0] and "new_root" not in house.turns[1].extra
    assert [turn.reward for turn in house.turns] == [0.0, 1.0], "the reward is the taskset's own"


def test_smolagents_plays_and_its_turns_say_that_it_rewrites_what_was_said():
    says = itertools.chain(ADD, [CALL % ("final_answer", '{"answer": "9"}')])
    house = play("smolagents", lambda prompt: next(says))
    assert [turn.parent for turn in house.turns] == [-1, -1, -1]
    assert house.turns[1].extra["new_root"].startswith('message 3 differs at character 1: "Calling tools:')
    assert house.turns[0].extra["overruled"] == {"tool_choice": "required"}


def test_dspy_plays_and_each_of_its_prompts_is_a_root():
    def field(name: str, text: str) -> str:
        return f"[[ ## {name} ## ]]\n{text}\n\n"

    def step(tool: str, arguments: dict) -> str:
        called = field("next_tool_name", tool) + field("next_tool_args", json.dumps(arguments))
        return field("next_thought", "so") + called + "[[ ## completed ## ]]"

    says = iter([step("add", {"a": 4, "b": 5}), step("finish", {}), field("reasoning", "so") + field("answer", "9")])
    house = play("dspy", lambda prompt: next(says))
    assert [turn.parent for turn in house.turns] == [-1, -1, -1]
