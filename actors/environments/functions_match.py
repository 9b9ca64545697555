"""Whether function calls are allowed ones, by the rules of the Berkeley Function Calling Leaderboard.

A reference call is {name: {argument: [allowed values]}}, in which "" says that the argument may be left out. Inside an
allowed map each value is again a list of allowed values; inside an allowed list each item is one value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPELLING = str.maketrans("'", '"', " ,./-_*^")


def _plain(text: str) -> str:
    """What strings are compared by: neither case nor , . / - _ * ^ nor spaces count, and both quotes are one."""
    return text.translate(SPELLING).lower()


def _same(value: Any, allowed: Any, schema: Mapping) -> bool:
    """Whether a value is this allowed one. An int may stand for a float; a float for an integer, a bool for a number
    and a number for a string may not."""
    if isinstance(allowed, dict):
        return isinstance(value, dict) and arguments_match(value, allowed, schema)
    if isinstance(allowed, list):
        items = schema.get("items") or {}
        return (
            isinstance(value, list)
            and len(value) == len(allowed)
            and all(_same(v, one, items) for v, one in zip(value, allowed, strict=True))
        )
    if isinstance(allowed, str):
        return isinstance(value, str) and _plain(value) == _plain(allowed)
    if isinstance(allowed, bool) or allowed is None:
        return value is allowed
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == allowed and not (isinstance(value, float) and schema.get("type") == "integer")


def arguments_match(arguments: Mapping, allowed: Mapping[str, Sequence], schema: Mapping) -> bool:
    """Whether each argument has an allowed value, and only those are left out that are not required and may be."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    for name in allowed.keys() - arguments.keys():
        if name in required or "" not in allowed[name]:
            return False
    return all(
        name in allowed and _allowed(value, allowed[name], properties.get(name) or {})
        for name, value in arguments.items()
    )


def _allowed(value: Any, allowed: Sequence, schema: Mapping) -> bool:
    """Whether it is one of the allowed values. The "" that says that an argument may be left out is one for texts."""
    of_texts = schema.get("type", "string") in ("string", "any")
    return any(of_texts and value == "" if one == "" else _same(value, one, schema) for one in allowed)


def call_matches(call: Mapping, reference: Mapping[str, Mapping], functions: Sequence[Mapping]) -> bool:
    """Whether {"name": ..., "arguments": ...} is the reference call."""
    ((name, allowed),) = reference.items()
    if call["name"] != name:
        return False
    schema = next(function["parameters"] for function in functions if function["name"] == name)
    return arguments_match(call["arguments"], allowed, schema)


def calls_match(calls: Sequence[Mapping], references: Sequence[Mapping], functions: Sequence[Mapping]) -> bool:
    """Whether calls and references can be paired one to one, in any order (a maximum bipartite matching)."""
    if len(calls) != len(references):
        return False
    fits = [[call_matches(call, reference, functions) for reference in references] for call in calls]
    taken: dict[int, int] = {}  # reference -> call

    def paired(call: int, tried: set[int]) -> bool:
        for reference, fit in enumerate(fits[call]):
            if fit and reference not in tried:
                tried.add(reference)
                if reference not in taken or paired(taken[reference], tried):
                    taken[reference] = call
                    return True
        return False

    return all(paired(call, set()) for call in range(len(calls)))
