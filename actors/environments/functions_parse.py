"""Reads the calls of an answer: JSON as models write it, within bounds, and its canonical form."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from actors.environments import answers

LONGEST = 4000  # characters of an answer
DEEPEST = 12  # maps and lists in each other
MOST_LINES = 200  # at which JSON is looked for
THOUGHTS = re.compile(r"<think(?:ing)?>.*\Z", re.DOTALL)  # that do not end
LANGUAGE = re.compile(r"\A\s*json\b", re.IGNORECASE)
LAST_TOKEN = re.compile(r"(?:<\|[\w ]{1,40}\|>|</s>|<eos>|<end_of_turn>)\s*\Z")  # that a server did not take off
BEGINNING = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)


def parse(text: str) -> Any:
    """The JSON of an answer, as calls where it is a call or several. Raises ValueError as `value_of` does."""
    return _listed(value_of(text))


def value_of(text: str) -> Any:
    """The JSON of an answer: of its last fenced block, else the whole of it, else what begins at some line and goes on
    to the end, after whatever the model thought before.

    Raises ValueError where it is too long or too deep, or has a name twice in one map, NaN or an infinite number.
    """
    text = THOUGHTS.sub("", answers.said(text.lstrip("\ufeff")))
    parts = text.split("```")
    text = LANGUAGE.sub("", parts[-2]) if len(parts) > 2 and len(parts) % 2 else LAST_TOKEN.sub("", text)
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    found = _whole(text)
    _check_depth(found, DEEPEST)
    return found


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
