"""Puzzles of reasoning-gym: made, scored, kept apart by split, and nothing that its scoring meets ends more than an
answer."""

from __future__ import annotations

import pytest
from support.extras import brings
from support.rollout_house import House
from support.tokenizers import hermes
from support.waiting import deadline_s

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments import extras
from actors.rollout_config import RetrySettings
from protocols.errors import SettingError

DATA = DataSettings(train_size=40, test_size=8)


def settings(dataset: str = "chain_sum", **options) -> EnvironmentSettings:
    return EnvironmentSettings(name="reasoning-gym", options={"dataset": dataset, **options})


def test_without_its_package_the_extra_is_named_in_one_line():
    with pytest.raises(
        SettingError, match=r"^environment\.name: chess needs the package no_such_package.*redraft\[chess"
    ):
        extras.need("chess", "no_such_package")


@brings("reasoning-gym")
def test_an_episode_is_played_and_a_right_answer_is_a_success():
    [task, *_] = environments.tasks(settings(), DATA, "train")
    said = iter(
        ["I do not know", "<answer>7</answer> no: <answer> 1,000,000 </answer>", f"<answer>{task['answer']}</answer>"]
    )
    found = House(
        RetrySettings(turns=3),
        lambda prompt: next(said),
        lambda: environments.make(settings()),
        task,
        tokenizer=hermes(),
        limit_s=deadline_s(60),
    )
    assert not found.failures and f"{task['question']}\nGive the final answer between <answer>" in found.prompts[0]
    first, second, third = (turn.reward for turn in found.turns)
    assert first == 0 and second < third == 1 and found.success == 1
    assert [turn.extra.get("parsed", True) for turn in found.turns][1:] == [True, True]


@brings("reasoning-gym")
def test_what_is_nearly_right_is_paid_in_part():
    one = settings("spell_backward")
    task = environments.tasks(one, DATA, "train")[0]
    played = environments.make(one)
    played.reset(seed=0, options={"task": task})
    _, reward, _, _, info = played.step(f"<answer>{task['answer'][:-1]}</answer>")
    assert 0 < reward < 1 and not info["success"]


@brings("reasoning-gym")
@pytest.mark.parametrize("dataset", ["chain_sum", "list_functions", "coin_flip"])
def test_no_question_is_in_both_splits_and_each_is_the_same_in_every_process(dataset):
    train, test = (environments.tasks(settings(dataset), DATA, split) for split in ("train", "test"))
    assert len(train) == 40 and 0 < len(test) <= 8
    questions = [task["question"] for task in (*train, *test)]
    assert len(set(questions)) == len(questions)
    played = environments.make(settings(dataset))
    for task in (train[0], train[-1], test[-1]):
        played.reset(seed=0, options={"task": task})
        assert played.step(played.reference(task))[1] == 1


@brings("reasoning-gym")
def test_another_seed_is_another_series():
    first, second = (environments.tasks(settings(seed=seed), DATA, "train") for seed in (0, 1))
    assert not {task["question"] for task in first} & {task["question"] for task in second}


@brings("reasoning-gym")
def test_an_answer_that_the_package_raises_at_is_wrong():
    one = settings("prime_factorization")
    [task, *_] = environments.tasks(one, DATA, "train")
    played = environments.make(one)
    played.reset(seed=0, options={"task": task})
    _, reward, _, _, info = played.step("<answer>(((</answer>")
    assert (reward, info["success"], info["answer"]) == (0.0, False, "(((")
    assert played.step(f"<answer>{task['answer']}</answer>")[1] == 1


@brings("reasoning-gym")
@pytest.mark.parametrize(
    ("dataset", "options", "problem"),
    [
        ("", {}, r"options\.dataset: it names no kind of puzzle"),
        ("no_such", {}, r"options\.dataset: 'no_such' cannot be made: ValueError: Dataset 'no_such' not registered"),
        (
            "chain_sum",
            {"config": {"seed": 3}},
            r"ValueError: config holds a seed or a size: set environment\.options\.seed",
        ),
        ("chain_sum", {"config": {"terms": 3}}, r"options\.dataset: 'chain_sum' cannot be made: TypeError.*terms"),
    ],
)
def test_what_the_package_does_not_know_is_refused_before_work_starts(dataset, options, problem):
    with pytest.raises(SettingError, match=problem):
        environments.make(settings(dataset, **options))
