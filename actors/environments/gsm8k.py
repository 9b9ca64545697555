"""`gsm8k`: grade-school word problems with one number as the answer (Cobbe et al., arXiv 2110.14168).

Judged as RISE does (arXiv 2407.18219): 1 right, 0 wrong, -1 where no number can be parsed. `data.path` is a name on the
Hugging Face hub, or a folder with train.jsonl and test.jsonl (question, answer that ends in "#### number").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import cast

from actors.config import DataSettings
from actors.environments.answers import BOXED, boxed
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import rows
from protocols.errors import SettingError

HUB_NAME = "openai/gsm8k"
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII)
LONGEST_NUMBER = 40  # characters


def final_answer(text: str) -> str | None:
    r"""What stands after the last `####` (to the end of its line) or in the last `\boxed{}`, whichever is later."""
    marked = text.rfind("####")
    return text[marked + 4 :].partition("\n")[0] if marked > text.rfind(BOXED) else boxed(text)


def number(text: str | None) -> str | None:
    """The one number in an answer, canonical: "$1,234.50 dollars" -> "1234.5". None where there is none, or several."""
    if text is None:
        return None
    found = NUMBER.findall(re.sub(r"\\[$,!; ]|[$%]|\\text\{[^{}]*\}", "", text).replace("{,}", ","))
    if len(found) != 1 or len(found[0]) > LONGEST_NUMBER:
        return None
    plain = format(Decimal(found[0].replace(",", "")), "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def _rows(path: str, split: str) -> Iterable[dict]:
    if Path(path).is_dir():
        return rows(Path(path) / f"{split}.jsonl")
    from datasets import Dataset, load_dataset

    return cast(Dataset, load_dataset(path, "main", split=split)).to_list()


class GSM8K(OneAnswer):
    """Reward 1 right, 0 wrong, -1 nothing parsable."""

    blocking = False

    right = "Your answer is correct. Write the same answer again, with the final number in \\boxed{}."
    wrong = "Your answer is incorrect. Go over the problem once more and give a better answer."

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        path = data.path or HUB_NAME
        try:
            found = [
                {
                    "id": f"gsm8k/{split}/{n}",
                    "question": row["question"],
                    "target": number(final_answer(row["answer"])),
                }
                for n, row in enumerate(_rows(path, split))
            ]
        except Exception as error:  # the hub's client raises many kinds; every one means that the data is not there
            cure = f"Name a folder with {split}.jsonl, or a hub name (needs `pip install datasets` and the network)"
            raise SettingError("data.path", f"{path!r} cannot be read: {error}", cure) from error
        if broken := [task["id"] for task in found if task["target"] is None]:
            raise SettingError("data.path", f"{path!r}: {broken[0]} has no answer after ####", "Correct that row")
        return found

    def question(self, task: dict) -> str:
        return f"{task['question']}\nReason step by step, then give the final number in \\boxed{{}}."

    def judge(self, task: dict, text: str) -> Verdict:
        answer = number(final_answer(text))
        if answer is None:
            return Verdict(-1.0)
        return Verdict(float(answer == task["target"]), answer)

    def hint(self) -> str:
        return f"\n\nThe right answer is {self.task['target']}. Show step by step how to get there, ending with it."
