"""Finds the tool calls in what a model wrote, in the form called hermes, which Qwen and many others are trained on:

<tool_call>
{"name": "add", "arguments": {"a": 1, "b": 2}}
</tool_call>
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"
CALL = re.compile(rf"{BEGIN}(.*?)(?:{END}|(?={BEGIN})|\Z)", re.DOTALL)
THOUGHT = "</think>"
SHOWN = 80  # characters of a call in an error


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `wrong` says in words for the model why it cannot be made."""

    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""


def find(text: str) -> list[Call]:
    """The calls of an answer in their order, after its thoughts; none where it makes none. One that cannot be read is
    among them, with what is `wrong`."""
    said = text.rpartition(THOUGHT)[2]
    return [_read(found[1], found[0].endswith(END)) for found in CALL.finditer(said)]


def written(name: str, arguments: dict[str, Any]) -> str:
    """A call as a model writes it."""
    return f"{BEGIN}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{END}"


def _read(body: str, closed: bool) -> Call:
    if not closed:
        return Call(wrong=f"the call does not end with {END}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        said = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deeply, or a number too long"
        return Call(wrong=f"the call is not valid JSON: {said}")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return Call(wrong=f'a call is {{"name": ..., "arguments": {{...}}}}, not {body.strip()[:SHOWN]}')
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return Call(found["name"], wrong=f"the arguments of {found['name'][:SHOWN]} must be an object")
    return Call(found["name"], arguments)
