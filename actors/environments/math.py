r"""`math`: competition problems whose answer is an expression in `\boxed{}` (Hendrycks et al., arXiv 2103.03874).

Judged as RISE does (arXiv 2407.18219): 1 where the answer is equivalent to the reference, else 0. `data.path` is a
folder with train.jsonl and test.jsonl, or with problems_*.jsonl, of which a fifth is held out for testing; each line
holds problem, solution or answer, level ("Level 3" or 3) and type or subject.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from actors.config import DataSettings
from actors.environments.answers import boxed
from actors.environments.base import OneAnswer, Verdict
from actors.environments.equivalence import equivalence
from actors.environments.files import field, held_out, rows, shuffled
from protocols.errors import SettingError

LONGEST = 300  # characters of an answer
COMMAND, LETTER = re.compile(r"\\[A-Za-z]+"), re.compile(r"[A-Za-z]")


def _mixed(found: re.Match[str]) -> str:
    """A mixed number as a fraction: 3 1/4 -> 13/4. math-verify takes it for a product."""
    whole, above, below = map(int, found.groups())
    return rf"\frac{{{whole * below + above}}}{{{below}}}"


SPELLINGS = [
    (re.compile(pattern, re.ASCII), other)
    for pattern, other in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it))\s*(?=\{)", r"\\text"),
        (r",\s*\\!\s*|\{,\}", ","),
        (r"\\!|\\?\$", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;: ]|~|\s", " "),  # but the row end of a matrix stays
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"\^\s*\{\s*(\\circ|\w)\s*\}", r"^\1"),
        # A space matters between letters (`\cot x`), between digits, and where it keeps `5, 115` from being 5115.
        (r"(?<![A-Za-z\d,]) +| +(?![A-Za-z\d])|(?<=[A-Za-z]) +(?=\d)|(?<=\d) +(?!\d)|(?<=,) +(?!\d{3}(?!\d))", ""),
        (r"^\\text\{([^{}]*)\}\.*$", r"\1"),
        (r"\.+$", ""),
        (r"(?<![\d.)}])(\d+) (\d+)/(\d+)(?![\d.])", _mixed),
        (r"^\(([A-Z])\)$", r"\1"),  # a choice: (C)
    )
]
WORDS = re.compile(r"\s*\\(?:text(?:bf|it|rm)?|mbox)\s*\{[^{}]*[A-Za-z][^{}]*\}[\s.]*")
NAME = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\([A-Za-z,]+\))?")


def canonical(answer: str) -> str:
    r"""One spelling of what is written in several ways: `\dfrac 12` -> `\frac{1}{2}`, `\text{(C)}` -> `C`."""
    for pattern, other in SPELLINGS:
        answer = pattern.sub(other, answer)
    return answer


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
    sides = answer.split("=")
    if "=" in target or len(sides) == 1:
        return [answer]
    return [side for side in sides if not NAME.fullmatch(side)] or sides[-1:]


def _rows(path: Path, split: str) -> list[dict]:
    """The rows of a split, in an order of which the first n are a fair sample: the files are sorted by type."""
    whole = sorted(path.glob("problems_*.jsonl"))
    if (path / f"{split}.jsonl").exists() or not whole:
        found = rows(path / f"{split}.jsonl")
    else:
        found = [row for file in whole for row in rows(file) if held_out(row["problem"]) == (split == "test")]
    return sorted(found, key=lambda row: shuffled(row["problem"]))


def _task(number: int, row: dict, split: str) -> dict:
    identity = f"math/{split}/{number}"
    target = row["answer"] if isinstance(row.get("answer"), str) else boxed(field(row, "solution", identity))
    if not target:
        raise ValueError(f"row {number} has no answer in \\boxed{{}}")
    kind = row["type"] if "type" in row else row["subject"]
    task = {"id": identity, "problem": field(row, "problem", identity), "target": target, "type": kind}
    level = re.fullmatch(r"(?:Level )?([1-9])", str(row["level"]))  # a few are "Level ?"
    return task | ({"level": int(level[1]) - 1} if level else {})


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
            return [_task(n, row, split) for n, row in enumerate(_rows(Path(data.path), split))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError("data.path", f"{data.path!r} cannot be used: {error}", cure) from error

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
