"""Tools and environments for tests of tools: sums, and a counter that only its own tools move."""

from __future__ import annotations

import os
from pathlib import Path

from actors.environments.base import OneAnswer, TextEnvironment, Verdict
from actors.tools import calls

TASK = {"id": "sums/0", "question": "What is 17 + 25?", "answer": "42"}


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def divide(a: float, b: float = 1.0) -> float:
    """Divides one number by another."""
    return a / b


async def later(text: str) -> dict:
    """Says a text again, after a while."""
    return {"said": text}


def leaves() -> None:
    """Ends the process, or so it thinks."""
    raise SystemExit(3)


def odd() -> object:
    """Returns what no model can read."""
    return object()


def loops(file: str) -> str:
    """Computes for ever, once it has written its process into a file."""
    Path(file).write_text(str(os.getpid()))
    while True:
        pass


def dies() -> str:
    """Ends its process without a word."""
    os._exit(3)


def untyped(a):
    """Has no type."""


def silent(a: int) -> int:
    return a


def call(name: str, /, **arguments) -> str:
    """A call as a model writes it."""
    return calls.written(name, arguments)


class Sums(OneAnswer):
    """A question with one answer."""

    blocking = False

    @classmethod
    def tasks(cls, data, split):
        return [TASK]

    def question(self, task):
        return task["question"]

    def judge(self, task, text):
        return Verdict(float(task["answer"] in text), text)


class Counter(TextEnvironment):
    """Reach 3 with a tool of its own, then say done; what is said is right where the count is."""

    blocking = False

    @classmethod
    def tasks(cls, data, split):
        return [{"id": "counter/0"}]

    def start(self, task):
        self.count = 0
        return "Count to 3."

    def tools(self):
        look = {"name": "look", "description": "Says the count.", "parameters": {"type": "object", "properties": {}}}
        return [self.up, look]

    def up(self, by: int) -> str:
        """Counts up, by 2 at most."""
        if by > 2:
            raise ValueError("too many")
        self.count += by
        return f"now {self.count}"

    def call(self, name, arguments):
        return {"count": self.count}

    def act(self, text):
        right = self.count == 3
        return ("yes" if right else "not yet"), float(right), right, False, {"success": right, "answer": text}
