"""What environments promise: right answers score, guarded parsers, no leaks, splits apart, exact replay."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction

import gymnasium
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments import answers, arithmetic, signs
from actors.environments.base import OneAnswer, TextEnvironment, Verdict
from protocols.errors import SettingError

MADE = DataSettings(train_size=50, test_size=50)


class Parity(OneAnswer):
    """A complete environment of one's own, named by import path."""

    @classmethod
    def tasks(cls, data, split):
        return [{"id": f"{split}/{n}", "n": n} for n in range(10)]

    def question(self, task):
        return f"Is {task['n']} even or odd?"

    def judge(self, task, text):
        answer = text.strip().lower()
        return Verdict(float(answer == ("even", "odd")[task["n"] % 2]), answer or None)


class Dice(TextEnvironment):
    """An environment with chance: answers with a roll of a die, whatever it is told."""

    @classmethod
    def tasks(cls, data, split):
        return [{"id": "dice"}]

    def start(self, task):
        return "roll"

    def act(self, text):
        return f"{text}:{self.np_random.integers(10**9)}", 0.0, False, False, {"success": False, "answer": None}


def begin(task: dict, name: str, feedback: str = "binary") -> tuple[TextEnvironment, str]:
    environment = environments.make(EnvironmentSettings(name=name, feedback=feedback))
    observation, _ = environment.reset(seed=0, options={"task": task})
    return environment, observation


# --- signs

SIGNS_TASK = {"id": "signs/7128>6", "digits": "7128", "target": 6}


@pytest.mark.parametrize(
    ("feedback", "answer", "expected"),
    [
        ("residual", "7+1-2-8\n", "?-8\n"),
        ("residual", "7+1-2-8", "?-8\n"),
        ("residual", "7-1-2+8\n", "?6\n"),
        ("residual", "8\n", "?x\n"),
        ("binary", "7+1-2-8\n", "?x\n"),
        ("blank", "7+1-2-8\n", "?x\n"),
    ],
)
def test_signs_answers_a_wrong_attempt_as_its_feedback_says(feedback, answer, expected):
    environment, question = begin(SIGNS_TASK, "signs", feedback)
    assert question == "7128>6\n"
    observation, reward, terminated, truncated, info = environment.step(answer)
    assert (observation, reward, terminated, truncated) == (expected, 0.0, False, False)
    assert info == {"success": False, "answer": None if answer == "8\n" else answer.strip()}


@pytest.mark.parametrize(("feedback", "expected"), [("residual", "?0\n"), ("binary", "?0\n"), ("blank", "?x\n")])
def test_signs_scores_a_right_attempt_and_goes_on_after_it(feedback, expected):
    environment, _ = begin({"id": "", "digits": "7128", "target": -2}, "signs", feedback)
    for _ in range(2):
        observation, reward, terminated, _, info = environment.step("7+1-2-8\n")
        assert (observation, reward, terminated) == (expected, 1.0, False)
        assert info == {"success": True, "answer": "7+1-2-8"}


def test_signs_with_a_draft_asks_as_if_all_plus_signs_had_been_answered():
    played, drafted = signs.Signs("residual"), signs.Signs("residual", draft=True)
    task = {"id": "t", "digits": "7128", "target": 12}
    asked, _ = played.reset(seed=0, options={"task": task})
    assert drafted.reset(seed=0, options={"task": task})[0] == f"{asked}7+1+2+8\n{played.step('7+1+2+8')[0]}"


@pytest.mark.parametrize("answer", ["", "\n", "7+1-2-8\n\n", " 7+1-2-8", "7+1-8-2", "-7+1-2-8", "7*1-2-8", "7+1-2-8=6"])
def test_signs_takes_nothing_but_the_digits_in_order(answer):
    environment, _ = begin({"id": "", "digits": "7128", "target": -2}, "signs", "residual")
    observation, reward, _, _, info = environment.step(answer)
    assert (observation, reward, info["answer"]) == ("?x\n", 0.0, None)


def test_signs_splits_by_sets_of_digits_and_every_task_has_a_solution():
    settings = EnvironmentSettings(name="signs")
    begun = time.perf_counter()
    splits = {split: environments.tasks(settings, DataSettings(), split) for split in ("train", "test")}
    seconds = time.perf_counter() - begun
    sets = {split: {frozenset(task["digits"]) for task in tasks} for split, tasks in splits.items()}
    assert not sets["train"] & sets["test"]
    assert len(sets["test"]) == 25 and len(sets["train"]) == 101
    every = [*splits["train"], *splits["test"]]
    assert len({task["id"] for task in every}) == len(every)
    solutions = [
        sum(signs.value(signs.attempt_of(task["digits"], choice)) == task["target"] for choice in signs.SIGNS)
        for task in every[::50]
    ]
    assert min(solutions) >= 1
    sizes = {split: len(tasks) for split, tasks in splits.items()}
    print(f"signs: {sizes} tasks in {seconds:.2f} s, {np.mean(solutions):.3f} solutions a task")


@pytest.mark.parametrize("feedback", ["residual", "binary", "blank"])
def test_demonstrations_say_what_the_environment_would_say(feedback):
    source = environments.make(EnvironmentSettings(name="signs", feedback=feedback))
    test_sets = {frozenset(task["digits"]) for task in signs.Signs.tasks(DataSettings(), "test")}
    first_right, flipped = [], []
    for dialogue in source.demonstrations(np.random.default_rng(0), 300, 3):
        digits, target = dialogue[0][0].strip().split(">")
        assert frozenset(digits) not in test_sets
        source.reset(seed=0, options={"task": {"id": "", "digits": digits, "target": int(target)}})
        assert [own for _, own in dialogue] == [False, True] + [False, True, True] * 2
        previous = dialogue[1][0]
        observation, reward, *_ = source.step(previous)
        first_right.append(reward)
        for n in (2, 5):
            (said, _), (reflection, _), (attempt, _) = dialogue[n : n + 3]
            assert said == observation
            changed = "".join(new[1] for old, new in zip(_terms(previous), _terms(attempt), strict=True) if old != new)
            assert changed == reflection
            flipped.append(len(reflection) / 3)
            observation, *_ = source.step(attempt)
            previous = attempt
    print(f"first attempts right {np.mean(first_right):.2f}, signs flipped {np.mean(flipped):.2f}")
    assert abs(np.mean(first_right) - 0.7) < 0.08
    assert abs(np.mean(flipped) - 0.4) < 0.05


def test_demonstrations_without_reflections_are_the_same_dialogues_without_them():
    made = {kept: signs.Signs("residual", reflections=kept) for kept in (True, False)}
    whole, bare = (made[kept].demonstrations(np.random.default_rng(0), 20, 3) for kept in (True, False))
    assert bare == [[piece for at, piece in enumerate(dialogue) if at not in (3, 6)] for dialogue in whole]
    assert [own for _, own in bare[0]] == [False, True] * 3


def _terms(attempt: str) -> list[str]:
    return [attempt[n : n + 2] for n in range(1, len(attempt), 2)]


# --- countdown


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "2**9**9**9",
        "2//1",
        "(lambda: 1)()",
        "0x10",
        "1_0",
        "1e3",
        "1.5",
        "True",
        "(1)(2)",
        "1,2",
        "1 2",
        "",
        "1/0",
        "1/(2-2)",
        "(" * 99 + "1" + ")" * 99 + "+" * 3,
        "(" * 500 + "1" + ")" * 500,
        "1+" * 200 + "1",
        "\u0663+\u0661",
        "x",
    ],
)
def test_the_evaluator_refuses_all_but_plain_arithmetic(text):
    with pytest.raises(ValueError):
        arithmetic.evaluate(text)


def test_the_evaluator_is_exact():
    assert arithmetic.evaluate("8 / (3 - 8/3)") == (Fraction(24), [8, 3, 8, 3])
    assert arithmetic.evaluate("1/3 + 1/3 + 1/3")[0] == 1


@given(st.text(alphabet="0123456789+-*/() .e_x", max_size=60))
def test_the_evaluator_answers_any_text_with_a_fraction_or_a_value_error(text):
    try:
        value, numbers = arithmetic.evaluate(text)
    except ValueError:
        return
    assert isinstance(value, Fraction) and numbers


def test_made_countdown_tasks_are_solved_by_their_own_solution_and_never_shared_between_splits():
    settings = EnvironmentSettings(name="countdown")
    splits = {split: environments.tasks(settings, MADE, split) for split in ("train", "test")}
    for task in (*splits["train"], *splits["test"]):
        assert 3 <= len(task["nums"]) <= 4
        environment, _ = begin(task, "countdown")
        assert environment.step(f"<answer>{task['solution']}</answer>")[1] == 1.0
    sets = [{tuple(sorted(task["nums"])) for task in tasks} for tasks in splits.values()]
    assert not sets[0] & sets[1]


def test_countdown_wants_each_number_exactly_once():
    task = {"id": "", "nums": [2, 3, 3], "target": 8}
    environment, question = begin(task, "countdown")
    assert "2, 3, 3" in question and "8" in question
    rewards = {text: environment.step(text)[1] for text in ("2+3+3", "2*3+2", "2+2*3", "3+3+2", "8", "2+6", "2+3+3+0")}
    assert {text for text, reward in rewards.items() if reward} == {"2+3+3", "3+3+2"}
    assert environment.step("I think\n( 2+3 ) +3")[-1] == {"success": True, "answer": "2 + 3 + 3"}


def test_countdown_reads_a_folder_and_every_row_there_is_solvable(data_folder):
    settings, data = EnvironmentSettings(name="countdown"), DataSettings(path=str(data_folder("countdown")))
    assert len(environments.tasks(settings, data, "train")) == 2500
    assert len(environments.tasks(settings, data, "test")) == 500


def test_a_countdown_row_that_its_solution_does_not_solve_names_data_path(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"nums": [1, 2, 3], "target": 7, "solution": "1+2+3"}))
    with pytest.raises(SettingError, match=r"data\.path.*does not solve"):
        environments.tasks(EnvironmentSettings(name="countdown"), DataSettings(path=str(tmp_path)), "test")


# --- gsm8k


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{18}", "18"),
        (r"\boxed{5} no, \boxed{\$1,234.50}", "1234.5"),
        (r"\boxed{18.0}", "18"),
        (r"\boxed{18 \text{ eggs}}", "18"),
        (r"\boxed{\text{about } 18}", "18"),
        (r"\boxed{-3}", "-3"),
        (r"\boxed{70,000}", "70000"),
        (r"\boxed{70{,}000}", "70000"),
        (r"\boxed{25\%}", "25"),
        (r"\boxed{007}", "7"),
        ("#### 1,000 dollars\nbye", "1000"),
        ("18", None),
        (r"\boxed{18", None),
        (r"\boxed{}", None),
        (r"\boxed{ten}", None),
        (r"\boxed{1 or 2}", None),
        ("####", None),
        (r"\boxed{" + "9" * 5000 + "}", None),
        (r"\boxed{- 5}", "-5"),
        ("\\boxed{\u22125}", "-5"),
        (r"\boxed{\text{5 apples}}", "5"),
        (r"\boxed{5 \mathrm{cm}^3}", "5"),
        (r"\boxed{2+3=5}", "5"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{10/2}", "5"),
        (r"\boxed{\frac{10}{2}}", "5"),
        (r"\boxed{3\frac12}", "3.5"),
        (r"\boxed{-3 1/2}", "-3.5"),
        (r"\boxed{2/6}", "1/3"),
        (r"\boxed{1/0}", None),
        (r"\boxed{1 000}", "1000"),
        (r"\boxed{12\,000\,000}", "12000000"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"it is \boxed{5}, so \boxed{6", "5"),
        (r"\boxed{5-3}", None),
        (r"\boxed{10:30}", None),
        (r"\boxed{" * 3000, None),
    ],
)
def test_gsm8k_finds_the_final_number(text, expected):
    assert answers.number(answers.final_answer(text)) == expected


def test_gsm8k_takes_the_last_number_of_a_model_that_marks_none_only_where_the_recipe_says_so():
    task = {"id": "", "question": "How many eggs?", "target": "18"}
    strict, last = (
        environments.make(EnvironmentSettings(name="gsm8k", options={"extract": extract}))
        for extract in ("strict", "last_number")
    )
    said = "16 - 3 - 4 = 9 eggs, 9 * 2 = $18."
    assert strict.judge(task, said).reward == -1 and last.judge(task, said).reward == 1
    assert last.judge(task, r"18 is \boxed{17}").reward == 0, "a marked answer counts"
    assert last.judge(task, "none").reward == -1
    with pytest.raises(SettingError, match=r"environment\.options\.extract.*strict or last_number"):
        environments.make(EnvironmentSettings(name="gsm8k", options={"extract": "any"}))


@pytest.mark.parametrize("feedback", ["blank", "binary"])
def test_gsm8k_rewards_and_feedback(feedback):
    task = {"id": "", "question": "How many eggs?", "target": "18"}
    environment, question = begin(task, "gsm8k", feedback)
    steps = {text: environment.step(text) for text in (r"\boxed{18.00}", r"\boxed{17}", "none")}
    assert [step[1] for step in steps.values()] == [1.0, 0.0, -1.0]
    assert [step[-1]["answer"] for step in steps.values()] == ["18", "17", None]
    said = [step[0] for step in steps.values()]
    assert question in said[1] and "incorrect" in said[1] and said[1] == said[2]
    assert (said[0] == said[1]) == (feedback == "blank")


def test_gsm8k_reads_a_folder_and_each_reference_solves_its_task(data_folder):
    settings, data = EnvironmentSettings(name="gsm8k"), DataSettings(path=str(data_folder("gsm8k")), train_size=10)
    train, test = (environments.tasks(settings, data, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 1319)
    for line, task in zip((data_folder("gsm8k") / "test.jsonl").read_text().splitlines(), test, strict=True):
        environment, _ = begin(task, "gsm8k")
        assert environment.step(json.loads(line)["answer"])[1] == 1.0


@pytest.mark.parametrize("name", ["gsm8k", "countdown"])
def test_data_that_is_empty_or_missing_names_data_path(name, tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    for split in ("train", "test"):
        with pytest.raises(SettingError, match=r"^data\.path"):
            environments.tasks(EnvironmentSettings(name=name), DataSettings(path=str(tmp_path)), split)


# --- all of them


ANSWERED = {  # a task and a right answer
    "countdown": ({"nums": [1, 2, 3], "target": 6}, "<answer>1 + 2 + 3</answer>"),
    "gsm8k": ({"question": "How many eggs?", "target": "18"}, r"\boxed{18}"),
    "math": ({"problem": "What is $2+2$?", "target": "4"}, r"\boxed{4}"),
    "functions": ({"request": "Hello!", "functions": [], "calls": []}, "[]"),
    f"{__name__}:Parity": ({"n": 3}, "odd"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_right_answer_is_asked_for_again(name):
    task, answer = ANSWERED[name]
    environment, question = begin({"id": ""} | task, name)
    for _ in range(2):
        said, reward, *_ = environment.step(answer)
        assert reward == 1.0
        assert re.fullmatch(r"Your \w+ (is|are) correct\. Write the same .+ again.*\.", said) and question not in said


@pytest.mark.parametrize("name", ANSWERED)
def test_blank_feedback_says_the_same_after_every_answer(name):
    task, answer = ANSWERED[name]
    environment, question = begin({"id": ""} | task, name, "blank")
    right, none, again = (environment.step(text)[0] for text in (answer, "", answer))
    assert right == none == again
    assert question in right and type(environment).right not in right


@pytest.mark.parametrize("name", ["signs", "countdown", f"{__name__}:Parity"])
def test_tasks_are_deterministic_maps_for_msgpack_with_ids_of_their_own(name):
    settings = EnvironmentSettings(name=name)
    for split in ("train", "test"):
        tasks = list(environments.tasks(settings, MADE, split))
        assert msgpack.unpackb(msgpack.packb(tasks)) == tasks
        assert len({task["id"] for task in tasks}) == len(tasks) <= 50
        assert list(environments.tasks(settings, MADE, split)) == tasks


def test_an_environment_of_ones_own_is_named_by_import_path():
    environment, question = begin({"id": "", "n": 3}, f"{__name__}:Parity")
    assert isinstance(environment, gymnasium.Env)
    assert environment.observation_space.contains(question) and question == "Is 3 even or odd?"
    assert environment.step("odd")[1] == 1.0


@pytest.mark.parametrize(
    "name", ["sings", "nowhere.at_all:Class", "actors.environments.signs:Nothing", "json:loads", ":"]
)
def test_an_unknown_environment_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(SettingError, match=r"environment\.name.*signs, countdown, gsm8k"):
        environments.make(EnvironmentSettings(name=name))


def test_a_feedback_that_an_environment_lacks_is_refused():
    with pytest.raises(SettingError, match=r"environment\.feedback.*binary, blank"):
        environments.make(EnvironmentSettings(name="gsm8k", feedback="residual"))


@pytest.mark.parametrize("seed", [7, None])
def test_a_restored_snapshot_goes_on_exactly_as_the_original_did(seed):
    first = Dice()
    first.reset(seed=seed, options={"task": {"id": "dice"}})
    first.step("a")
    state = msgpack.unpackb(msgpack.packb(first.snapshot()))
    expected = [first.step(text) for text in "bc"]
    for other in (Dice(), first):
        other.restore(state)
        assert [other.step(text) for text in "bc"] == expected


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("1+2+3", "Your expression makes 6, not 7."),
        ("(1+2)/4", "Your expression makes 3/4, but does not use each of the given numbers exactly once."),
        ("one", "No expression could be read."),
    ],
)
def test_countdown_says_what_a_wrong_answer_came_to_and_to_a_right_one_that_it_is_right(answer, said):
    environment = environments.make(EnvironmentSettings(name="countdown", feedback="residual"))
    environment.reset(seed=0, options={"task": {"id": "one", "nums": [1, 2, 3], "target": 7}})
    heard = environment.step(f"<answer>{answer}</answer>")[0]
    assert heard.startswith(said) and "make 7" in heard, "with the question once more"
    assert environment.step("<answer>1+2*3</answer>")[0] == environment.right
