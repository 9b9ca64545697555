"""`functions`: choose functions and their arguments for a request, in the format of the Berkeley Function Calling
Leaderboard (BFCL v4). Function calling is a task of Reflect, Retry, Reward (arXiv 2505.24726).

`data.path` is a folder with BFCL_v4_<kind>.json for each of KINDS, and possible_answer/ for those that have a call. A
fifth of the cases is the test split, by what they ask for: some stand in several files.
"""

from __future__ import annotations

import json
from pathlib import Path

from actors.config import DataSettings
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import held_out, rows, shuffled
from actors.environments.functions_match import calls_match
from actors.environments.functions_parse import canonical, is_calls, parse
from protocols.errors import SettingError

KINDS = ("simple_python", "multiple", "parallel", "irrelevance")
"""One function; one of several; several calls; no function that fits. The place of a kind is its tasks' `level`."""

EXAMPLE = '[{"name": "add", "arguments": {"a": 1, "b": 2}}]'


def _tasks(folder: Path, kind: str) -> list[dict]:
    file = f"BFCL_v4_{kind}.json"
    called = kind != "irrelevance"
    answers = {row["id"]: row["ground_truth"] for row in rows(folder / "possible_answer" / file)} if called else {}
    return [_task(row, answers[row["id"]] if called else [], KINDS.index(kind)) for row in rows(folder / file)]


def _task(row: dict, calls: list[dict], level: int) -> dict:
    names = {function["name"] for function in row["function"]}
    if not all(len(call) == 1 and call.keys() <= names for call in calls):
        raise ValueError(f"the answer of {row['id']} calls a function that the case does not have")
    request = row["question"][0][-1]["content"]
    return {
        "id": f"functions/{row['id']}",
        "request": request,
        "functions": row["function"],
        "calls": calls,
        "level": level,
    }


def _asked(task: dict) -> str:
    """What cases that ask for the same have in common: some stand in several files."""
    return " ".join(task["request"].casefold().split())


class Functions(OneAnswer):
    """Reward 1 for allowed calls, 0 for others, -1 for what is no JSON."""

    blocking = False

    right = "Your calls are correct. Write the same JSON list of calls again and nothing else."
    wrong = "Your answer is incorrect. Look at the functions and the request again, and give better calls."

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        cure = "Name a folder with BFCL_v4_*.json and possible_answer/"
        if data.path is None:
            raise SettingError("data.path", "functions has no cases of its own", cure)
        try:
            found = [task for kind in KINDS for task in _tasks(Path(data.path), kind)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SettingError("data.path", f"{data.path!r} cannot be used: {error}", cure) from error
        chosen = [task for task in found if held_out(_asked(task)) == (split == "test")]
        return sorted(chosen, key=lambda task: shuffled(task["id"]))

    def question(self, task: dict) -> str:
        functions = "\n".join(map(json.dumps, task["functions"]))
        return (
            f"{task['request']}\n\nYou can call these functions:\n{functions}\n\n"
            f"Answer with a JSON list of the calls to make and nothing else, for example {EXAMPLE}. "
            "Where no function fits, answer with []."
        )

    def judge(self, task: dict, text: str) -> Verdict:
        try:
            found = parse(text)
        except ValueError:
            return Verdict(-1.0)
        right = is_calls(found) and calls_match(found, task["calls"], task["functions"])
        return Verdict(float(right), canonical(found))
