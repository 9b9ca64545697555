"""`signs`: put + or - between digits of fixed order to hit a target. Small enough for a model to learn in a minute.

    7128>12     question: digits > target; the first digit is always positive, so there are 8 candidates
    7+1-2-8     attempt
    ?-14        feedback `residual`: value minus target; "?0" right, "?x" malformed
    18          reflection (where the rollout asks for one): the digits whose sign is to be flipped, empty = keep all
    7-1-2+8     next attempt

With the option `draft` the question already holds an answer, all plus signs, and how far off it is. With
`reflections: false` demonstrations show the next attempt right after the feedback: a model that was made with them
answers where a rollout asks for no reflection.
Feedback `binary` is "?0" for right and "?x" for everything else; `blank` is always "?x". Digits are 1 to 9, distinct:
a zero would make two candidates out of one. Train and test have no set of digits in common. A task's
level is how many minus signs solve it, 0 to 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from actors.config import DataSettings
from actors.environments.base import OneAnswer, Verdict
from actors.environments.signs_tasks import COUNT, SIGNS, attempt_of, orders_of, targets_of, tasks_of, value

OTHER = {"+": "-", "-": "+"}
FIRST_RIGHT = 0.7  # demonstrations: how often the first attempt is right
FLIP = 0.4  # demonstrations: how often a retry flips a sign


class Signs(OneAnswer):
    """Reward 1 for the target, else 0. Accepts an answer with or without its newline, and nothing around it."""

    blocking = False

    feedbacks = ("residual", "binary", "blank")

    def __init__(self, feedback: str = "binary", draft: bool = False, reflections: bool = True):
        super().__init__(feedback)
        self._draft, self._reflections = draft, reflections

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> tuple[dict, ...]:
        return tasks_of(split)

    def question(self, task: dict) -> str:
        asked = f"{task['digits']}>{task['target']}\n"
        if not self._draft:
            return asked
        draft = attempt_of(task["digits"], SIGNS[0])
        return f"{asked}{draft}\n{self._feedback(value(draft) - task['target'])}"

    def judge(self, task: dict, text: str) -> Verdict:
        attempt = text.removesuffix("\n")
        if len(attempt) != 2 * COUNT - 1 or attempt[::2] != task["digits"] or set(attempt[1::2]) - {"+", "-"}:
            return Verdict(0.0)
        return Verdict(float(value(attempt) == task["target"]), attempt)

    def say(self, verdict: Verdict) -> str:
        self._last = verdict.answer
        return self._feedback(None if verdict.answer is None else value(verdict.answer) - self.task["target"])

    def hint(self) -> str | None:
        """The digits to flip, as a reflection would name them; None after what was no answer."""
        signs = tuple(re.findall(r"[+-]", self._last or ""))
        if not signs:
            return None
        right = targets_of(self.task["digits"])[self.task["target"]][0]
        named = zip(self.task["digits"][1:], signs, right, strict=True)
        return "".join(digit for digit, mine, other in named if mine != other) + "\n"

    def _feedback(self, residual: int | None) -> str:
        shown = residual is not None and (self.feedback == "residual" or (self.feedback == "binary" and residual == 0))
        return f"?{residual}\n" if shown else "?x\n"

    def explore(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Random signs between training digits, and what that is worth."""
        orders = orders_of("train")
        attempt = attempt_of(orders[rng.integers(len(orders))], SIGNS[rng.integers(len(SIGNS))])
        return [(attempt, str(value(attempt)))]

    def propose(self, trajectory: Sequence[tuple[str, str]]) -> list[dict]:
        """What was hit becomes the target, in hindsight."""
        found = []
        for attempt, worth in trajectory:
            digits, target = attempt[::2], int(worth)
            task = {"digits": digits, "target": target, "level": attempt.count("-")}
            found.append({**task, "query": f"{digits}>{target}", "reference": [attempt]})
        return found

    def demonstrations(self, rng: np.random.Generator, count: int, turns: int) -> list[list[tuple[str, bool]]]:
        """`count` dialogues about training digits, as (text, the model's own) pieces without end tokens.

        They show the form, and how a reflection is carried out, but not which reflection helps: the first attempt is
        right with probability FIRST_RIGHT, else any wrong one; a retry flips each sign with probability FLIP, and its
        reflection names exactly those digits.
        """
        orders = orders_of("train")
        picks = rng.integers(len(orders), size=count)
        chances = rng.random((count, 3))
        flips = rng.random((count, turns - 1, COUNT - 1)) < FLIP
        return [self._dialogue(orders[n], *row) for n, *row in zip(picks, chances, flips, strict=True)]

    def _dialogue(self, digits: str, chances: np.ndarray, flips: np.ndarray) -> list[tuple[str, bool]]:
        targets = targets_of(digits)
        target = list(targets)[int(chances[0] * len(targets))]
        right = targets[target]
        start = right if chances[1] < FIRST_RIGHT else [signs for signs in SIGNS if signs not in right]
        signs = start[int(chances[2] * len(start))]
        pieces = [(f"{digits}>{target}\n", False), (attempt_of(digits, signs), True)]
        for flip in flips:
            pieces.append((self._feedback(value(pieces[-1][0]) - target), False))
            if self._reflections:
                pieces.append(("".join(digit for digit, f in zip(digits[1:], flip, strict=True) if f), True))
            signs = tuple(OTHER[sign] if f else sign for sign, f in zip(signs, flip, strict=True))
            pieces.append((attempt_of(digits, signs), True))
        return pieces
