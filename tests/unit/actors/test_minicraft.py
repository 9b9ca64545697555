"""What minicraft promises: its rules, splits apart, honest demonstrations, and errors that can still be made good."""

from __future__ import annotations

import itertools

import msgpack
import numpy as np
import pytest

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.minicraft import STEPS, Minicraft
from protocols.errors import SettingError
from redraft.models.make import build_tokenizer

TASK = {"id": "", "base": "abcde", "recipes": ["acj", "edb"], "good": 1}
SETTINGS = EnvironmentSettings(name="minicraft")


def begin(task: dict = TASK) -> tuple[Minicraft, str]:
    environment = environments.make(SETTINGS)
    return environment, environment.reset(seed=0, options={"task": task})[0]


def play(environment: Minicraft, actions: list[str]) -> list[tuple]:
    return [environment.step(action) for action in actions]


def task_of(question: str) -> dict:
    base, first, second = question.removesuffix(">\n").split(";")
    assert (first[0], second[0]) == ("1", "2")
    recipes = [first[1:], second[1:]]
    can = [set(recipe) <= set(base) for recipe in recipes]
    assert sorted(can) == [False, True]
    return {"id": "", "base": base, "recipes": recipes, "good": can.index(True)}


def test_the_good_recipe_is_crafted_from_its_three_ingredients_in_any_order():
    for order in itertools.permutations("edb"):
        environment, question = begin()
        assert question == "abcde;1acj;2edb>\n"
        *taken, crafted = play(environment, ["@2\n", *(f"+{item}" for item in order), "*2\n"])
        for observation, reward, terminated, truncated, info in taken:
            assert (observation, reward, terminated, truncated) == (".\n", 0.0, False, False)
            assert not info["success"] and not info["refused"]
        *said, info = crafted
        assert said == [".\n", 1.0, True, False]
        assert info == {"success": True, "answer": "*2", "refused": False, "good": True, "state": "bde after 5"}


@pytest.mark.parametrize("action", ["+j", "+f", "*1", "*2"])
def test_what_cannot_be_had_or_crafted_is_refused_and_named_as_the_answer(action):
    environment, _ = begin()
    play(environment, ["+a", "+c"])
    refused = {"success": False, "answer": action, "refused": True, "good": False, "state": "ac after 3"}
    expected = ("!\n", 0.0, False, False, refused)
    assert environment.step(action) == expected


@pytest.mark.parametrize(
    "action",
    [
        "",
        "\n",
        "+",
        "+a\n\n",
        "++a",
        "+ab",
        "*3",
        "*0",
        "*",
        "@",
        "@3",
        "+\u0661",
        "*\u0661",
        "a",
        "+A",
        pytest.param("x" * 10**6, id="long"),
    ],
)
def test_a_malformed_action_is_refused_and_changes_nothing_but_the_steps_left(action):
    environment, _ = begin()
    play(environment, ["+e", "+d"])
    observation, reward, terminated, _, info = environment.step(action)
    assert (observation, reward, terminated) == ("!\n", 0.0, False)
    assert info == {"success": False, "answer": None, "refused": True, "good": False, "state": "de after 3"}
    assert play(environment, ["+b", "*2"])[-1][1] == 1.0


def test_after_eight_steps_without_a_craft_it_is_over_and_worth_nothing():
    environment, _ = begin()
    steps = play(environment, ["@1", "+a", "*1", "oh", "@2", "+e", "+d", "+b"])
    assert [step[2] for step in steps] == [False] * (STEPS - 1) + [True]
    assert all(step[1] == 0 and not step[3] and not step[4]["success"] for step in steps)


def test_a_craft_at_the_last_step_counts():
    environment, _ = begin()
    assert play(environment, ["@1"] * 4 + ["+e", "+d", "+b", "*2"])[-1][1:3] == (1.0, True)


def test_tasks_have_one_good_recipe_and_the_splits_share_no_set_of_base_items():
    found = {split: environments.tasks(SETTINGS, DataSettings(), split) for split in ("train", "test")}
    assert {split: len(tasks) for split, tasks in found.items()} == {"train": 4000, "test": 500}
    every = [*found["train"], *found["test"]]
    assert len({task["id"] for task in every}) == len(every)
    assert msgpack.unpackb(msgpack.packb(every)) == every
    missing = np.zeros((2, 3))
    for task in every:
        parsed = task_of(begin(task)[1])
        assert parsed | {"id": task["id"]} == task
        assert all(len(set(recipe)) == 3 for recipe in task["recipes"])
        bad = task["recipes"][1 - task["good"]]
        (place,) = [n for n, item in enumerate(bad) if item not in task["base"]]
        missing[task["good"], place] += 1
    assert not {task["base"] for task in found["train"]} & {task["base"] for task in found["test"]}
    assert np.abs(missing / len(every) - 1 / 6).max() < 0.02
    few = environments.tasks(SETTINGS, DataSettings(train_size=7), "train")
    assert list(few) == list(found["train"][:7])


def test_what_it_finds_for_itself_are_training_tasks_like_its_own_and_their_references_succeed():
    environment = begin()[0]
    found = [environment.propose(environment.explore(np.random.default_rng([0, n])))[0] for n in range(600)]
    tests = {task["base"] for task in environments.tasks(SETTINGS, DataSettings(), "test")}
    places = np.zeros((2, 3))
    for proposed in found:
        task = task_of(proposed["query"] + "\n")
        assert task == {"id": ""} | {key: proposed[key] for key in ("base", "recipes", "good")}
        assert task["base"] not in tests and len(task["base"]) == 5
        assert all(len(set(recipe)) == 3 for recipe in task["recipes"])
        bad = task["recipes"][1 - task["good"]]
        places[task["good"], [item in task["base"] for item in bad].index(False)] += 1
        assert play(begin(task)[0], proposed["reference"])[-1][1] == 1.0
    assert len({proposed["query"] for proposed in found}) > 580 and places.min() > 60


def test_demonstrations_say_what_the_environment_would_say_and_never_revise():
    dialogues = begin()[0].demonstrations(np.random.default_rng(0), 600, 3)
    tests = {task["base"] for task in environments.tasks(SETTINGS, DataSettings(), "test")}
    good, thoughts = [], []
    for dialogue in dialogues:
        assert [own for _, own in dialogue] == [False, True] * (len(dialogue) // 2)
        said = [text for text, own in dialogue if not own]
        actions = [text for text, own in dialogue if own]
        task = task_of(said[0])
        assert task["base"] not in tests
        environment, question = begin(task)
        steps = play(environment, actions)
        assert said == [question, *(step[0] for step in steps[:-1])]
        assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
        recipe = int(actions[-1][1])
        plan = [f"+{item}" for item in task["recipes"][recipe - 1]]
        thought = [f"@{recipe}"] if actions[0][0] == "@" else []
        crafts = len(actions) - len(thought + plan)
        assert actions == thought + plan + [f"*{recipe}"] * crafts
        assert steps[-1][1] == float(recipe - 1 == task["good"])
        good.append(steps[-1][1])
        thoughts.append(len(thought))
    print(f"good recipe {np.mean(good):.2f}, thought first {np.mean(thoughts):.2f}")
    assert abs(np.mean(good) - 0.5) < 0.06 and abs(np.mean(thoughts) - 0.4) < 0.06


def test_who_reads_which_recipe_to_follow_goes_by_it_also_after_a_refusal():
    reader, strayed = Minicraft(read=1.0), 0
    for dialogue in reader.demonstrations(np.random.default_rng(3), 600, 1):
        told, question = int(dialogue[0][0][1]), dialogue[0][0].removeprefix(dialogue[0][0][:3])
        task = task_of(question)
        environment, _ = begin(task)
        steps = play(environment, [text for text, own in dialogue if own])
        assert dialogue[-1][0] == f"*{told}" and steps[-1][2]
        assert steps[-1][1] == float(told - 1 == task["good"])
        refusals = [n for n, step in enumerate(steps) if step[4]["refused"]]
        strayed += told - 1 == task["good"] and len(refusals) == 1
    assert 100 < strayed < 200, "half of those that name the good one"


def test_most_failures_cut_at_the_first_error_can_still_be_made_good_with_a_revision():
    failures = recovered = 0
    for dialogue in begin()[0].demonstrations(np.random.default_rng(1), 600, 1):
        task = task_of(dialogue[0][0])
        environment, _ = begin(task)
        errors = (environment.step(text)[4]["refused"] for text, own in dialogue if own)
        if not any(errors):
            continue
        failures += 1
        good = [*(f"+{item}" for item in task["recipes"][task["good"]]), f"*{task['good'] + 1}"]
        for action in (environment.revision(good, np.random.default_rng(0)), *good):
            _, reward, terminated, _, _ = environment.step(action)
            if terminated:
                break
        recovered += reward == 1
    print(f"{recovered} of {failures} failures recovered")
    assert failures > 200 and recovered / failures > 0.8


def test_a_revision_names_the_recipe_that_the_good_actions_craft():
    environment, _ = begin()
    assert environment.revision(["@1", "*1", "+e", "*2"], None) == "@2"
    with pytest.raises(ValueError):
        environment.revision(["+e"], None)


def test_a_snapshot_branches_without_its_branches_meeting():
    environment, _ = begin()
    play(environment, ["+e", "+d"])
    state = msgpack.unpackb(msgpack.packb(environment.snapshot()))
    expected = play(environment, ["+b", "*2"])
    other, _ = begin(TASK | {"base": "fghij"})
    for player in (other, environment):
        player.restore(state)
        assert player.step("*2")[4]["refused"]
        player.restore(state)
        assert play(player, ["+b", "*2"]) == expected
    environment.restore(state)
    assert [step[2] for step in play(environment, ["@1"] * 6)] == [False] * 5 + [True]


def test_the_character_tokenizer_spells_all_of_it():
    tokenizer = build_tokenizer("characters", 64)
    dialogues = begin()[0].demonstrations(np.random.default_rng(2), 100, 1)
    whole = ["".join(text for text, _ in dialogue) for dialogue in dialogues]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(whole)["input_ids"])
    assert max(map(len, tokenizer(whole)["input_ids"])) <= 64 - STEPS


def test_a_feedback_that_it_lacks_is_refused():
    with pytest.raises(SettingError, match=r"environment\.feedback"):
        environments.make(EnvironmentSettings(name="minicraft", feedback="residual"))
