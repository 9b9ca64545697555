"""`countdown`: combine the given numbers, each exactly once, with + - * / and brackets to hit a target.

The task of Reflect, Retry, Reward (arXiv 2505.24726). Tasks are made here, each from an expression that solves it, or
read from `data.path`, a folder with train.jsonl and test.jsonl (nums, target; solution where it is to be hinted).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from actors.config import DataSettings
from actors.environments.arithmetic import OPERATORS, answer_in, evaluate
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import held_out, rows
from protocols.errors import SettingError

SIZES = {"train": 4000, "test": 500}  # tasks made when data.<split>_size says nothing
SMALLEST_TARGET, LARGEST_TARGET, LARGEST_NUMBER = 10, 99, 99


def _generate(rng: np.random.Generator) -> dict:
    """A task with the expression that it was made from: random numbers, joined two at a time."""
    while True:
        nums = [int(n) for n in rng.integers(1, LARGEST_NUMBER + 1, size=rng.integers(3, 5))]
        parts = [(str(n), Fraction(n)) for n in nums]
        while len(parts) > 1:  # none are left after a division by zero
            (a, x), (b, y) = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
            sign, operate = [("+", ast.Add), ("-", ast.Sub), ("*", ast.Mult), ("/", ast.Div)][rng.integers(4)]
            if sign == "/" and y == 0:
                parts.clear()
                break
            parts.append((f"({a} {sign} {b})", OPERATORS[operate](x, y)))
        for solution, target in parts:
            if target.denominator == 1 and SMALLEST_TARGET <= target <= LARGEST_TARGET:
                return {"nums": nums, "target": int(target), "solution": solution}


def _is_test(nums: Sequence[int]) -> bool:
    """A fifth of all sets of numbers, so that made train and test tasks have no set in common."""
    return held_out(repr(sorted(nums)))


@cache
def _made(split: str, size: int) -> tuple[dict, ...]:
    rng = np.random.Generator(np.random.Philox(("train", "test").index(split)))
    found: list[dict] = []
    while len(found) < size:
        task = _generate(rng)
        if _is_test(task["nums"]) == (split == "test"):
            found.append({"id": f"countdown/{split}/{len(found)}", **task})
    return tuple(found)


def _read(path: Path, split: str) -> list[dict]:
    """Raises SettingError where the file is missing or a task is not solved by its own solution."""
    file = path / f"{split}.jsonl"
    try:
        found = [{"id": f"countdown/{split}/{n}", **row} for n, row in enumerate(rows(file))]
        for task in found:
            _check(task)
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "Name a folder with train.jsonl and test.jsonl (nums, target), or leave it out"
        raise SettingError("data.path", f"{file} cannot be used: {error}", cure) from error
    return found


def _check(task: dict) -> None:
    target, nums, solution = task["target"], task["nums"], task.get("solution")
    if not isinstance(target, int) or not all(isinstance(number, int) for number in nums):
        raise ValueError(f"{task['id']} has target={target!r} and nums={nums!r}, which must be whole numbers")
    if solution is not None and not solves(solution, task):
        raise ValueError(f"{solution!r} does not solve {task['id']}")


def solves(expression: str, task: dict) -> bool:
    """Whether it hits the target with each number exactly once. Raises ValueError where it is no expression."""
    result, numbers = evaluate(expression)
    return result == task["target"] and sorted(numbers) == sorted(task["nums"])


def reached(expression: str, task: dict) -> str:
    """What an expression came to, in a sentence."""
    try:
        result, numbers = evaluate(expression)
    except ValueError:
        return "No expression could be read."
    if sorted(numbers) != sorted(task["nums"]):
        return f"Your expression makes {result}, but does not use each of the given numbers exactly once."
    return f"Your expression makes {result}, not {task['target']}."


class Countdown(OneAnswer):
    """Reward 1 for an expression that solves the task, else 0. Feedback `residual` says what a wrong one came to."""

    blocking = False
    feedbacks = ("residual", "binary", "blank")

    right = "Your expression is correct. Write the same expression again between <answer> and </answer>."

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> Sequence[dict]:
        if data.path is not None:
            return _read(Path(data.path), split)
        return _made(split, (data.train_size if split == "train" else data.test_size) or SIZES[split])

    def question(self, task: dict) -> str:
        numbers = ", ".join(map(str, task["nums"]))
        return (
            f"Use the numbers {numbers}, each exactly once, with + - * / and brackets to make {task['target']}. "
            "Write your expression between <answer> and </answer>, for example <answer>(1 + 2) / 3</answer>."
        )

    def judge(self, task: dict, text: str) -> Verdict:
        expression = answer_in(text)
        self._came_to = reached(expression, task)
        try:
            return Verdict(float(solves(expression, task)), ast.unparse(ast.parse(expression, mode="eval")))
        except ValueError:
            return Verdict(0.0)

    def say(self, verdict: Verdict) -> str:
        if self.feedback != "residual" or verdict.success:
            return super().say(verdict)
        return f"{self._came_to} Think again and try once more.\n\n{self.question(self.task)}"

    def hint(self) -> str | None:
        return None if self.task.get("solution") is None else f"\n\nOne right expression is {self.task['solution']}."
