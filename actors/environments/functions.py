"""`functions`: choose functions and their arguments for a request, in the format of the Berkeley Function Calling
Leaderboard (BFCL v4). Function calling is a task of Reflect, Retry, Reward (arXiv 2505.24726).

`data.path` is a folder with BFCL_v4_<kind>.json for each of KINDS, and possible_answer/ for those that have a call. A
fifth of the cases is the test split, by their ids.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from actors.config import DataSettings
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import held_out, rows, shuffled
from actors.environments.functions_match import calls_match
from protocols.errors import SettingError

KINDS = ("simple_python", "multiple", "parallel", "irrelevance")
"""One function; one of several; several calls; no function that fits. The place of a kind is its tasks' `level`."""
LONGEST = 4000  # characters of an answer
DEEPEST = 12  # maps and lists in each other
MOST_LINES = 200  # at which JSON is looked for

EXAMPLE = '[{"name": "add", "arguments": {"a": 1, "b": 2}}]'


THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
LANGUAGE = re.compile(r"\A\s*json\b", re.IGNORECASE)
LAST_TOKEN = re.compile(r"(?:<\|[\w ]{1,40}\|>|</s>|<eos>|<end_of_turn>)\s*\Z")  # that a server did not take off
BEGINNING = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)


def parse(text: str) -> Any:
    """The JSON of an answer, as calls where it is a call or several: of its last fenced block, else the whole of it,
    else what begins at some line and goes on to the end, after whatever the model thought before.

    Raises ValueError where it is too long or too deep, or has a name twice in one map, NaN or an infinite number.
    """
    text = THOUGHTS.sub("", text.lstrip("\ufeff"))
    parts = text.split("```")
    text = LANGUAGE.sub("", parts[-2]) if len(parts) > 2 and len(parts) % 2 else LAST_TOKEN.sub("", text)
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    found = _whole(text)
    _check_depth(found, DEEPEST)
    return _listed(found)


def _whole(text: str) -> Any:
    """The longest JSON that begins where the text or a line of it does, and ends where the text ends."""
    beginnings = [0, *(line.end() for line in BEGINNING.finditer(text))][:MOST_LINES]
    error = ValueError("no JSON")
    for start in beginnings:
        try:
            return json.loads(text[start:], object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        except RecursionError:
            raise ValueError("too deep") from None
        except ValueError as problem:
            error = problem
    raise error


def _listed(found: Any) -> Any:
    """One call as a list of it; arguments that were written as a JSON text as the map that it holds."""
    calls = [found] if isinstance(found, dict) and {"name", "arguments"} <= found.keys() else found
    return [_call(one) for one in calls] if isinstance(calls, list) else found


def _call(one: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(one.get("arguments"), str):
        return one
    try:
        arguments = _whole(one["arguments"])
        _check_depth(arguments, DEEPEST)
    except ValueError:
        return one
    return one | {"arguments": arguments}


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in a map")
    return found


def _finite(number: str) -> float:
    if not math.isfinite(found := float(number)):
        raise ValueError("not a finite number")
    return found


def _check_depth(found: Any, deepest: int) -> None:
    if isinstance(found, dict | list):
        if deepest == 0:
            raise ValueError("too deep")
        for item in found.values() if isinstance(found, dict) else found:
            _check_depth(item, deepest - 1)


def canonical(found: Any) -> str:
    """JSON with names in order; calls in order, too, since theirs means nothing."""
    return "[" + ",".join(sorted(map(_dump, found))) + "]" if is_calls(found) else _dump(found)


def _dump(found: Any) -> str:
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def is_calls(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and isinstance(call["name"], str)
        and isinstance(call["arguments"], dict)
        for call in found
    )


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
        chosen = [task for task in found if held_out(task["id"]) == (split == "test")]
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
