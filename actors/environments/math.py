r"""`math`: competition problems whose answer is an expression in `\boxed{}` (Hendrycks et al., arXiv 2103.03874).

Judged as RISE does (arXiv 2407.18219): 1 where the answer is equivalent to the reference, else 0. `data.path` is a
folder with train.jsonl and test.jsonl, or with problems_*.jsonl, of which a fifth is held out for testing; each line
holds problem, solution or answer, level ("Level 3" or 3) and type or subject.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

from actors.config import DataSettings
from actors.environments.answers import boxed
from actors.environments.base import OneAnswer, Verdict
from actors.environments.equivalence import equivalence
from actors.environments.math_problems import rows_of, task_of
from actors.environments.math_spelling import canonical
from protocols.errors import SettingError

log = logging.getLogger("redraft.environments")
LONGEST = 300  # characters of an answer
COMMAND, LETTER = re.compile(r"\\[A-Za-z]+"), re.compile(r"[A-Za-z]")


WORDS = re.compile(r"\s*\\(?:text(?:bf|it|rm)?|mbox)\s*\{[^{}]*[A-Za-z][^{}]*\}[\s.]*")
ALSO = re.compile(r",|\\text\{(?:or|and)\}")  # of canonical answers, between several of them
NAME = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\([A-Za-z,]+\))?")


def _other_letters(target: str, answer: str) -> bool:
    """Whether they differ in the case of letters that stand for something: math-verify takes N for n."""
    ours, theirs = ({*LETTER.findall(COMMAND.sub("", side))} for side in (target, answer))
    return ours != theirs and {letter.lower() for letter in ours} == {letter.lower() for letter in theirs}


def _letters(answer: str) -> str:
    return re.sub(r"\\text|[{}. ]", "", answer).casefold()


def equal(reference: str, answer: str) -> bool:
    """Whether a canonical answer is the reference. Words are compared as they are spelled, all else as mathematics."""
    target = canonical(reference)
    if answer == target:
        return True
    if WORDS.fullmatch(reference):  # to math-verify `even` is a product, and the same as `neve`
        return _letters(answer) == _letters(target)
    sides = _sides(target, answer)
    return not any(_other_letters(target, side) for side in sides) and all(
        equivalence.same(target, side) for side in sides
    )


def _sides(target: str, answer: str) -> list[str]:
    """What must equal the target: of `x = 5` the 5, of `3 + 2 = 5` both; math-verify looks at the last alone."""
    if "=" in target:
        return [answer]
    listed = ALSO.split(answer)
    if len(listed) > 1 and all(len(one.split("=")) == 2 and NAME.fullmatch(one.split("=")[0]) for one in listed):
        return [",".join(one.split("=")[1] for one in listed)]  # x = 1, x = 3
    sides = answer.split("=")
    return [side for side in sides if not NAME.fullmatch(side)] or sides[-1:]


class Math(OneAnswer):
    """Reward 1 for an equivalent answer, else 0; `level` is the problem's, less one."""

    right = "Your answer is correct. Write the same answer again, with the final answer in \\boxed{}."

    def __init__(self, feedback: str = "binary"):
        super().__init__(feedback)
        if importlib.util.find_spec("math_verify") is None:
            raise SettingError("environment.name", "math needs the package math-verify", "See requirements/")

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        cure = "Name a folder with train.jsonl and test.jsonl, or problems_*.jsonl (problem, solution, level, type)"
        if data.path is None:
            raise SettingError("data.path", "math has no problems of its own", cure)
        try:
            found = [task_of(n, row, split) for n, row in enumerate(rows_of(Path(data.path), split))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError("data.path", f"{data.path!r} cannot be used: {error}", cure) from error
        tasks = [task for task in found if task is not None]
        if several := len(found) - len(tasks):
            log.info("%s: %d problems are left out, whose solutions have several answers", data.path, several)
        return tasks

    def question(self, task: dict) -> str:
        return f"{task['problem']}\nReason step by step, then give the final answer in \\boxed{{}}."

    def judge(self, task: dict, text: str) -> Verdict:
        found = boxed(text) or ""
        answer = canonical(found) if len(found) <= LONGEST else ""
        return Verdict(float(equal(task["target"], answer)), answer) if answer else Verdict(0.0)

    def reference(self, task: dict) -> str:
        return rf"\boxed{{{task['target']}}}"

    def hint(self) -> str:
        return f"\n\nThe right answer is {self.task['target']}. Show step by step how to get there, ending with it."
