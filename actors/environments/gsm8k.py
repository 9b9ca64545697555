"""`gsm8k`: grade-school word problems with one number as the answer (Cobbe et al., arXiv 2110.14168).

Judged as RISE does (arXiv 2407.18219): 1 right, 0 wrong, -1 where no number can be parsed. `data.path` is a name on the
Hugging Face hub, or a folder with train.jsonl and test.jsonl (question, answer that ends in "#### number").
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

from actors.config import DataSettings, Feedback
from actors.environments.answers import final_answer, last_number, number
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import field, rows
from protocols.errors import SettingError

HUB_NAME = "openai/gsm8k"


def _rows(path: str, split: str) -> Iterable[dict]:
    if Path(path).is_dir():
        return rows(Path(path) / f"{split}.jsonl")
    from datasets import Dataset, load_dataset

    return cast(Dataset, load_dataset(path, "main", split=split)).to_list()


def _task(identity: str, row: dict) -> dict:
    answer = field(row, "answer", identity)
    return {"id": identity, "question": field(row, "question", identity), "target": number(final_answer(answer))}


class GSM8K(OneAnswer):
    r"""Reward 1 right, 0 wrong, -1 nothing parsable.

    `extract` says which number of a response counts: strict, the one that is marked as the answer, in `\\boxed{}` or
    after `####`; last_number, where none is marked, the last one, for small models that never mark any.
    """

    blocking = False

    right = "Your answer is correct. Write the same answer again, with the final number in \\boxed{}."
    wrong = "Your answer is incorrect. Go over the problem once more and give a better answer."

    def __init__(self, feedback: Feedback = "binary", extract: Literal["strict", "last_number"] = "strict"):
        super().__init__(feedback)
        if extract not in ("strict", "last_number"):
            raise SettingError("environment.options.extract", f"there is no {extract!r}", "Use strict or last_number")
        self._last_number = extract == "last_number"

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        path = data.path or HUB_NAME
        try:
            found = [_task(f"gsm8k/{split}/{n}", row) for n, row in enumerate(_rows(path, split))]
        except Exception as error:  # the hub's client raises many kinds; every one means that the data is not there
            cure = f"Name a folder with {split}.jsonl, or a hub name (needs `pip install datasets` and the network)"
            raise SettingError("data.path", f"{path!r} cannot be read: {error}", cure) from error
        if broken := [task["id"] for task in found if task["target"] is None]:
            raise SettingError("data.path", f"{path!r}: {broken[0]} has no answer after ####", "Correct that row")
        return found

    def question(self, task: dict) -> str:
        return f"{task['question']}\nReason step by step, then give the final number in \\boxed{{}}."

    def judge(self, task: dict, text: str) -> Verdict:
        marked = final_answer(text)
        answer = last_number(text) if marked is None and self._last_number else number(marked)
        if answer is None:
            return Verdict(-1.0)
        return Verdict(float(answer == task["target"]), answer)

    def reference(self, task: dict) -> str:
        return rf"\boxed{{{task['target']}}}"

    def hint(self) -> str:
        return f"\n\nThe right answer is {self.task['target']}. Show step by step how to get there, ending with it."
