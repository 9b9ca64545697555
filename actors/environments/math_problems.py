"""Rows of MATH as tasks."""

from __future__ import annotations

import re
from pathlib import Path

from actors.environments.answers import all_boxed
from actors.environments.files import field, held_out, rows, shuffled
from actors.environments.math_spelling import canonical


def rows_of(path: Path, split: str) -> list[dict]:
    """The rows of a split, in an order of which the first n are a fair sample: the files are sorted by type."""
    whole = sorted(path.glob("problems_*.jsonl"))
    if (path / f"{split}.jsonl").exists() or not whole:
        found = rows(path / f"{split}.jsonl")
    else:
        found = [row for file in whole for row in rows(file) if held_out(row["problem"]) == (split == "test")]
    return sorted(found, key=lambda row: shuffled(row["problem"]))


def task_of(number: int, row: dict, split: str) -> dict | None:
    """None where the solution has several answers, each in a box: nothing says which of them, or whether all, are
    asked for."""
    identity = f"math/{split}/{number}"
    found = [row["answer"]] if isinstance(row.get("answer"), str) else all_boxed(field(row, "solution", identity))
    if not found or not found[0]:
        raise ValueError(f"row {number} has no answer in \\boxed{{}}")
    if len({canonical(one) for one in found}) > 1:
        return None
    target = found[0]
    kind = row["type"] if "type" in row else row["subject"]
    task = {"id": identity, "problem": field(row, "problem", identity), "target": target, "type": kind}
    level = re.fullmatch(r"(?:Level )?([1-9])", str(row["level"]))  # a few are "Level ?"
    return task | ({"level": int(level[1]) - 1} if level else {})
