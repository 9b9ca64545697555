"""`redraft doctor RECIPE`: what would keep a run from learning is said before it starts, and dialogues are shown as
they would be trained."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from actors.engines.scripted import ScriptedEngine
from protocols import cache, own_code
from protocols.turns import Stop
from redraft import recipe as recipes
from redraft.cli import doctor_recipe
from redraft.cli.main import app

ROWS = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(30)]
VALUES = {
    "name": "mine",
    "steps": 3,
    "model": {"make": {"tokenizer": "bytes", "hidden": 64, "heads": 2, "layers": 1, "max_length": 512}},
    "data": {"path": "train.jsonl", "test": "train.jsonl"},
    "environment": {"name": "rows", "options": {"reward": "mine.py:score", "prompt": "question", "answer": "answer"}},
    "rollout": {"name": "retry", "turns": 2, "episodes": 2},
    "sampling": {"max_tokens": 6},
    "actors": {"engine": {"name": "scripted", "max_length": 128}},
    "learner": {"row_tokens": 128, "micro_tokens": 512},
}


@pytest.fixture(autouse=True)
def loggers():
    """The command silences ours for as long as its process lives."""
    ours = logging.getLogger("redraft")
    level = ours.level
    yield
    ours.setLevel(level)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's folder, with 30 rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield tmp_path
    own_code.install({})


@pytest.fixture
def varying(monkeypatch: pytest.MonkeyPatch):
    """Has the scripted engine, which says the same to the same prompt, draw anew each time."""
    whole, number = ScriptedEngine.generate, count()

    async def generate(self, prompt_ids, sampling):
        return await whole(self, np.append(prompt_ids, next(number)), sampling)

    monkeypatch.setattr(ScriptedEngine, "generate", generate)


def said(models: Path, reward: str, html: Path | None = None, **changes) -> tuple[bool, str]:
    """Whether it is good, and what was printed."""
    Path("mine.py").write_text(f"def score(text, answer):\n    {reward}\n")
    recipe = recipes.build(VALUES | changes)
    console = Console(file=io.StringIO(), width=200, record=True)
    good = doctor_recipe.examine(recipe, models, 60, html, console)
    return good, console.export_text()


def test_a_recipe_that_could_learn_is_good_and_two_dialogues_show_what_is_trained(models, folder, varying):
    paid = "return (text == answer) + sum(map(ord, text)) % 9973 / 10_000"  # no two answers alike
    good, text = said(models, paid, html=folder / "page.html")
    assert good and "20 of 20 tasks were played" in text and "nothing was found" in text, text
    assert text.count("\ntask ") == 2
    turns = re.findall(r"attempt · reward \S+ · .*?(\d+) of (\d+) tokens are trained · ends with (\S+)", text)
    assert len(turns) == 4 and all(int(trained) in (0, int(length)) for trained, length, _ in turns)
    page = (folder / "page.html").read_text()
    shown = re.findall(r'<span class="(\w+)(?: special)?">(.*?)</span>', page.partition("<h2>")[2])
    [heard] = {kind for kind, _ in shown} - {"trained"}
    asked = "".join(token for kind, token in shown if kind == "heard")
    assert heard == "heard" and asked.count("+ 1?") == 4 and asked.count("incorrect") == 2
    assert sum(kind == "trained" for kind, _ in shown) == sum(int(trained) for trained, _, _ in turns)


@pytest.mark.parametrize(
    ("reward", "what"),
    [
        ("return 0.5", "the reference answer is paid no more than an empty one in 20 of 20 tasks"),
        ("return 0.5", "no group of 20 would vary: every answer is paid 0.5"),
        ("return 0.5 * (text == answer)", "20 of 20 reference answers do not count as right"),
        ("return 1 + (text == answer)", "an empty answer counts as right in 20 of 20 tasks"),
        ("raise KeyError('gold')", "40 of 40 answers could not be scored: mine.py:score raised KeyError: 'gold'"),
        ("raise KeyError('gold')", "nothing would be trained: every episode of a batch ended with an error"),
    ],
)
def test_what_would_teach_nothing_is_wrong(models, reward, what):
    good, text = said(models, reward)
    assert not good and f"wrong {what}" in text


AGENT = """
import json, os, urllib.request

def ask(said, model="redraft"):
    head = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    body = json.dumps({"model": model, "messages": said}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, head)
    with urllib.request.urlopen(request) as came:
        return json.load(came)["choices"][0]["message"]

def solve(task):
    said = [{"role": "user", "content": task["question"]}]
    plan = ask(said, "redraft/planner")
    said += [plan, {"role": "user", "content": "on"}]
    ask(said), ask(said)
    return len(ask([{"role": "user", "content": "in short: " + task["question"]}])["content"]) / 100
"""


def test_the_graph_of_an_agent_is_drawn_with_what_is_trained_and_why_a_root_is_one(models, folder, varying):
    (folder / "agent.py").write_text(AGENT)
    rollout = {"name": "agent", "run": "agent.py:solve", "episodes": 2, "processes": 1, "roles": ["planner"]}
    roles = {"planner": 1.0, "attempt": 0.5}
    changes = {"rollout": rollout, "learner": VALUES["learner"] | {"roles": roles}}
    _, text = said(models, "return 0.0", data=VALUES["data"] | {"train_size": 2}, html=folder / "page.html", **changes)
    graph = text.partition("4 turns, 2 roots, 1 branch")[2].splitlines()[1:5]
    assert [line.split(" · ")[0].rstrip() for line in graph] == ["o turn 0", "   | turn 1", "   | turn 2", "o turn 3"]
    assert graph[0].split(" · ")[1] == "planner" and graph[1].split(" · ")[1] == "action"
    trained = [int(re.search(r"(\d+) trained", line)[1]) > 0 for line in graph]
    assert trained == [True, False, False, False], graph
    assert "a new root: message 1 differs at character 1: 'in short: " in graph[3]
    assert "2 roots, 1 branch" in (folder / "page.html").read_text()


def test_answers_that_are_cut_are_counted_and_shown(models, varying, monkeypatch):
    whole = ScriptedEngine.generate

    async def cut(self, prompt_ids, sampling):
        return replace(await whole(self, prompt_ids, sampling), stop=Stop.LENGTH)

    monkeypatch.setattr(ScriptedEngine, "generate", cut)
    good, text = said(models, "return len(text) / 100 + (text == answer)")
    assert not good and re.search(r"wrong 80 of 80 answers were cut at sampling.max_tokens=6", text)
    assert "cut at sampling.max_tokens" in text.partition("task ")[2].partition("heard")[0]


def test_the_command_exits_with_1_where_something_is_wrong_and_takes_overrides(folder, models, varying, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda part: models)
    (folder / "mine.py").write_text("def score(text, answer):\n    return (text == answer) + len(text) / 100\n")
    (folder / "flat.py").write_text("def score(text):\n    return 0\n")
    (folder / "mine.yaml").write_text(yaml.safe_dump(VALUES))
    run = CliRunner().invoke
    assert run(app, ["doctor", "mine.yaml"]).exit_code == 0
    assert run(app, ["doctor", "mine.yaml", "environment.options.reward=flat.py:score"]).exit_code == 1
