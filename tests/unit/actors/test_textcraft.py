"""What textcraft promises: every goal can be crafted at its depth, no text breaks it, tasks are the same everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.places import ROOT

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.textcraft import Textcraft
from actors.environments.textcraft_recipes import DISTRACTORS, GOALS, RECIPES
from protocols.errors import SettingError

SETTINGS = EnvironmentSettings(name="textcraft")
TASK = {
    "id": "textcraft/oak_sign",
    "goal": "oak sign",
    "level": 1,
    "commands": [
        ["oak sign", 3, {"oak planks": 6, "stick": 1}],
        ["oak planks", 4, {"oak log": 1}],
        ["birch planks", 4, {"birch log": 1}],
        ["stick", 4, {"planks": 2}],
        ["stick", 1, {"bamboo": 2}],
        ["spruce boat", 1, {"spruce planks": 5}],
    ],
    "tags": {"planks": ["birch planks", "oak planks"]},
    "raw": ["bamboo", "birch log", "oak log"],
}


def begin(task: dict = TASK, **options) -> tuple[Textcraft, str]:
    environment = environments.make(EnvironmentSettings(name="textcraft", options=options))
    return environment, environment.reset(seed=0, options={"task": task})[0]


def play(environment: Textcraft, actions: list[str]) -> list[tuple]:
    return [environment.step(action) for action in actions]


@pytest.fixture(scope="module")
def folder(data_folder) -> Path:
    return data_folder("textcraft")


@pytest.fixture(scope="module")
def tasks(folder) -> list[dict]:
    data = DataSettings(path=str(folder))
    return [task for split in ("train", "test") for task in environments.tasks(SETTINGS, data, split)]


class Planner:
    """Solves a task from its commands, tags and raw items: always the command of least depth."""

    def __init__(self, task: dict):
        self.tags = task["tags"]
        self.depths = dict.fromkeys(task["raw"], 0)
        self.best: dict[str, tuple[int, dict[str, int]]] = {}
        for depth in range(1, 9):
            for output, count, needs in task["commands"]:
                if output not in self.depths and all(self.depth(name) < depth for name in needs):
                    self.best[output] = count, needs
            self.depths |= {output: depth for output in self.best if output not in self.depths}

    def depth(self, name: str) -> float:
        return min((self.depths.get(item, np.inf) for item in self.tags.get(name, [name])), default=np.inf)

    def item(self, name: str) -> str:
        return min(self.tags.get(name, [name]), key=self.depth)

    def plan(self, item: str, count: int, held: Counter) -> list[str]:
        """Actions after which `held`, which is kept up to date, has at least `count` of the item."""
        missing = count - held[item]
        if missing <= 0:
            return []
        if not self.depths[item]:
            held[item] += missing
            return [f"get {missing} {item}"]
        actions = []
        output, needs = self.best[item]
        while held[item] < count:
            using = {self.item(name): number for name, number in needs.items()}
            for name in sorted(using, key=self.depth, reverse=True):  # so that what is made last uses up none of these
                actions += self.plan(name, using[name], held)
            held.subtract(using)
            held[item] += output
            actions.append(f"craft {output} {item} using " + ", ".join(f"{n} {name}" for name, n in using.items()))
        return actions


# --- the data


def test_a_planner_crafts_every_goal_and_its_depth_is_the_listed_one(folder, tasks):
    listed = dict(json.loads((folder / GOALS).read_text()))
    assert len(tasks) == len(listed) == 544
    longest = 0
    for task in tasks:
        planner = Planner(task)
        depth = listed[f"minecraft:{task['goal'].replace(' ', '_')}"]
        assert planner.depths[task["goal"]] == depth == task["level"] + 1
        environment, prompt = begin(task)
        actions = planner.plan(task["goal"], 1, Counter())
        *steps, last = play(environment, [f"Thought: go on\nAction: {action}" for action in actions])
        assert not any(step[1] or step[2] or step[4]["refused"] for step in steps)
        assert last[1:4] == (1.0, True, False) and last[4]["success"]
        assert len({action for action in actions if action.startswith("craft")}) <= len(task["commands"]) - DISTRACTORS
        made = {line.split(" using ")[0] for line in prompt.splitlines()}
        assert {action.split(" using ")[0] for action in actions if action.startswith("craft")} <= made
        longest = max(longest, len(actions))
    print(f"the longest plan has {longest} actions")


def test_raw_items_are_no_goals_but_for_tags_that_count_as_raw_and_none_is_made_by_a_command(folder, tasks):
    goals = {goal[len("minecraft:") :].replace("_", " ") for goal, _ in json.loads((folder / GOALS).read_text())}
    for task in tasks:
        made = {output for output, _, _ in task["commands"]}
        assert not made & set(task["raw"])
        assert all(item.endswith("slab") for item in set(task["raw"]) & goals)


def test_tasks_are_maps_for_msgpack_split_by_the_hash_of_their_goal(folder, tasks):
    assert msgpack.unpackb(msgpack.packb(tasks)) == tasks
    assert len({task["id"] for task in tasks}) == len(tasks)
    test = environments.tasks(SETTINGS, DataSettings(path=str(folder)), "test")
    held_out = [task for task in tasks if hashlib.blake2b(task["goal"].encode()).digest()[0] % 5 == 0]
    assert list(test) == held_out and len(held_out) == 130
    assert {task["level"] for task in test} == {0, 1, 2, 3}
    few = environments.tasks(SETTINGS, DataSettings(path=str(folder), test_size=5), "test")
    assert list(few) == list(test[:5])


def test_a_task_has_the_same_prompt_in_processes_of_other_hash_seeds_and_whatever_the_order_of_recipes(
    folder, tasks, tmp_path
):
    shutil.copy(folder / GOALS, tmp_path)
    turned = dict(reversed(json.loads((folder / RECIPES).read_text()).items()))
    (tmp_path / RECIPES).write_text(json.dumps(turned))
    digest = (
        "import hashlib, random, sys; random.seed(); from actors.config import DataSettings\n"
        "from actors.environments.textcraft import Textcraft\n"
        "player, whole = Textcraft(), hashlib.blake2b()\n"
        "for task in Textcraft.tasks(DataSettings(path=sys.argv[1]), 'test'):\n"
        "    prompt, _ = player.reset(options={'task': task})\n"
        "    whole.update(f\"{task['id']} {prompt} {task['raw']}\".encode())\n"
        "print(whole.hexdigest())"
    )
    command = [sys.executable, "-c", digest]
    found = [
        subprocess.run(
            [*command, str(path)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, path in (("1", folder), ("2", tmp_path))
    ]
    assert found[0] == found[1] and len(found[0].strip()) == 128


def test_a_folder_that_is_missing_or_lacks_or_breaks_a_file_names_data_path(folder, tmp_path):
    def read(path: str | None) -> None:
        with pytest.raises(SettingError, match=rf"^data\.path.*{GOALS}"):
            environments.tasks(SETTINGS, DataSettings(path=path), "train")

    read(None)
    read(str(tmp_path / "nowhere"))
    shutil.copy(folder / RECIPES, tmp_path)
    read(str(tmp_path))
    for broken in (
        "{",
        "[1]",
        '[["minecraft:stick", 7]]',
        '[["minecraft:unheard_of", 1]]',
        '[["minecraft:stick", "1"]]',
    ):
        (tmp_path / GOALS).write_text(broken)
        read(str(tmp_path))


# --- the rules


def test_the_prompt_lists_commands_what_tags_mean_and_the_goal():
    _, prompt = begin()
    assert "craft 4 stick using 2 planks\n" in prompt
    assert "This counts as planks: birch planks, oak planks." in prompt
    assert prompt.endswith("Goal: craft oak sign.")


def test_replies_are_clear_and_any_item_of_a_tag_will_do():
    environment, _ = begin()
    dialogue = {
        "inventory": "You have nothing.",
        "wait": "ok.",
        "get 1 oak log": "Got 1 oak log.",
        "Thought: birch\nAction: get 1 birch log": "Got 1 birch log.",
        "craft 4 oak planks using 1 oak log": "Crafted 4 oak planks.",
        "Action: Craft 4 Birch planks using 1 birch log.": "Crafted 4 birch planks.",
        "Thought: Action\nAction: craft 4 stick using 1 oak planks, 1 birch planks": "Crafted 4 stick.",
        "Action: wait\nAction: inventory": "You have 3 birch planks, 3 oak planks, 4 stick.",
    }
    for action, expected in dialogue.items():
        observation, reward, terminated, truncated, info = environment.step(action)
        assert (observation, reward, terminated, truncated) == (expected, 0.0, False, False)
        assert not info["refused"] and not info["success"]
    assert info["answer"] == "inventory"


@pytest.mark.parametrize(
    "action",
    [
        "get 1 oak planks",
        "get 1 spruce planks",
        "get 1 planks",
        "get 1 oak sign",
        "get 1 dragon",
        "craft 4 oak planks using 2 oak log",
        "craft 8 oak planks using 1 oak log",
        "craft 4 oak planks using 1 birch log",
        "craft 4 oak planks using 1 bamboo, 1 oak log",
        "craft 4 stick using 2 planks",
        "craft 4 stick using 1 oak planks",
        "craft 4 stick using 1 oak planks, 1 spruce planks",
        "craft 3 oak sign using 6 birch planks, 1 stick",
        "craft 3 oak sign using 6 oak planks, 1 stick",
        "craft 4 birch planks using 2 birch log, 1 oak log",
        "craft 1 stick using 2 bamboo",
        "craft 1 bread using 3 wheat",
    ],
)
def test_what_is_not_listed_or_not_held_is_refused_and_changes_nothing(action):
    environment, _ = begin()
    play(environment, ["get 9 oak log", "craft 4 oak planks using 1 oak log"])
    before = environment.snapshot()["held"]
    observation, reward, terminated, _, info = environment.step(f"Action: {action}")
    assert observation.startswith("Could not ") and info["refused"] and not info["success"]
    assert info["answer"] == action
    assert (reward, terminated) == (0.0, False)
    assert environment.snapshot()["held"] == before


HOSTILE = [
    "",
    "Action:",
    "Thought: I craft 4 oak planks using 1 oak log",
    "Action: get 1 oak log\nAction:",
    "Action: get 1 oak log\nAction: fly",
    "get oak log",
    "get 0 oak log",
    "get -1 oak log",
    "get +1 oak log",
    "get 1.5 oak log",
    "get 01 oak log",
    "get \u0661 oak log",
    "get \u00b2 oak log",
    "get \uff11 oak log",
    "get 10000 oak log",
    "get " + "9" * 3900 + " oak log",
    "get 1 " + "oak log " * 400,
    "craft 4 oak planks",
    "craft 4 oak planks using",
    "craft 4 oak planks using 1 oak log,",
    "craft 4 oak planks using 0 oak log",
    "craft 4 oak planks, 1 oak log",
    "craft 4 oak planks using " + "," * 3000,
    "get 1 oak log using 1 oak log",
    "action:" * 500,
    "\n" * 3999,
    " " * 3999 + "x",
    "action:\n" * 400,
    "get 1 oak log" + " " * 1_000_000,
    "Action: get 1 oak log\n" * 40_000,
    "\x00\ud800",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_that_is_no_action_is_refused_within_ten_milliseconds_of_computing(text):
    environment, _ = begin()
    seconds = []
    for _ in range(3):  # the best of three: caches may have been cold
        began = time.thread_time()
        observation, _, _, _, info = environment.step(text)
        seconds.append(time.thread_time() - began)
        assert observation.startswith("Could not ") and info["refused"] and len(observation) < 200
        assert not environment.snapshot()["held"]
    assert min(seconds) < 0.01


@given(st.text(max_size=80) | st.from_regex(r"(Action: )?(get|craft) \d+ [a-z ]+( using \d+ [a-z ,0-9]+)?"))
def test_any_text_is_answered(text):
    environment, _ = begin()
    observation, reward, terminated, _, info = environment.step(text)
    assert observation and reward == 0 and not terminated
    assert info["refused"] == observation.startswith("Could not ")


def test_the_last_of_the_steps_ends_it_with_nothing_unless_it_crafts_the_goal():
    way = ["get 2 oak log", "get 2 bamboo", *["craft 4 oak planks using 1 oak log"] * 2, "craft 1 stick using 2 bamboo"]
    goal = "craft 3 oak sign using 6 oak planks, 1 stick"
    environment, _ = begin(steps=6)
    assert [step[2] for step in play(environment, [*way, "wait"])] == [False] * 5 + [True]
    environment, _ = begin(steps=6)
    steps = play(environment, [*way, goal])
    assert [step[1] for step in steps] == [0.0] * 5 + [1.0]
    assert steps[-1][2:] == (True, False, {"success": True, "answer": goal, "refused": False})
    environment, _ = begin()
    assert [step[2] for step in play(environment, ["wait"] * 100)].index(True) == 99


def test_a_step_limit_below_one_is_refused():
    for steps in (0, -1, "many", None):
        with pytest.raises(SettingError, match=r"environment\.options\.steps"):
            begin(steps=steps)


def test_a_random_agent_plays_ten_thousand_steps_without_an_exception(tasks):
    rng = np.random.default_rng(0)
    played = successes = done = 0
    environment = environments.make(SETTINGS)
    while played < 10_000:
        task = tasks[rng.integers(len(tasks))]
        prompt, _ = environment.reset(seed=0, options={"task": task})
        crafts = re.findall("^craft [0-9].*$", prompt, re.MULTILINE)
        terminated = False
        while not terminated:
            raw = task["raw"][rng.integers(len(task["raw"]))]
            craft = crafts[rng.integers(len(crafts))]
            noise = "".join(map(chr, rng.integers(1, 3000, size=20)))
            kinds = [f"get {rng.integers(-2, 12)} {raw}", f"Action: {craft}", "inventory", noise]
            _, reward, terminated, truncated, info = environment.step(kinds[rng.choice(4, p=[0.45, 0.45, 0.05, 0.05])])
            assert not truncated and info["success"] == (reward == 1.0)
            played, done, successes = played + 1, done + (not info["refused"]), successes + info["success"]
    print(f"{played} steps, {done} done, {successes} successes")
    assert done > 1000 and successes > 0


def test_a_snapshot_branches_exactly_here_and_in_another_environment():
    environment, _ = begin(steps=5)
    play(environment, ["get 5 oak log", "get 1 birch log"])
    state = environment.snapshot()
    packed = msgpack.packb(state)
    ways = (["craft 4 oak planks using 1 oak log", "inventory", "wait"], ["get 1 bamboo", "inventory", "inventory"])
    expected = []
    for way in ways:
        expected.append(play(environment, way))
        environment.restore(state)
    assert expected[0] != expected[1] and all(way[-1][2] for way in expected)
    other, _ = begin(TASK | {"goal": "stick", "raw": []}, steps=5)
    for way, steps in zip(ways, expected, strict=True):
        other.restore(state)
        assert play(other, way) == steps
    assert msgpack.unpackb(packed) == state


def test_what_a_model_thought_before_its_action_does_not_count():
    from actors.environments.textcraft_actions import parse

    said = f"{'so ' * 2000}</think>\nAction: get 1 oak log"
    assert str(parse(said)) == str(parse("Action: get 1 oak log")) == "get 1 oak log"
