"""Tools that a model may call in the middle of an episode: what one is, and what is offered of them.

    recipe, environment --> Tool: a schema and what runs it       functions.py, mcp_server.py
    functions of a recipe, in processes that can be killed         function_processes.py, function_worker.py
    schemas --> Offered --> the model's own chat template          actors/rendering.py
    the model's answer --> calls --> Tool.run --> role `tool`      calls.py, actors/environment_pool.py

A tool that says no (it raised, its arguments are wrong) is answered: the model reads the error and the action counts
as refused. One that is gone, hangs, or returns what cannot be read breaks the episode off: that is no model's doing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a tool returned, still to pass the door; or, where it `refused`, the error that the model reads."""

    value: Any
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """`schema` describes it in OpenAI's form. `run(arguments)` may block; what it raises breaks the episode off."""

    schema: dict[str, Any]
    run: Callable[[dict[str, Any]], Answer]
    limited: bool = False
    """`run` ends by itself within environment.time_limit_s."""

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


@dataclass(frozen=True, slots=True)
class Offered:
    """The schemas that a dialogue begins with. Equal ones have equal `text`, their JSON."""

    text: str
    schemas: tuple[dict[str, Any], ...] = field(compare=False)

    @classmethod
    def of(cls, schemas: Iterable[dict[str, Any]]) -> Offered | None:
        """None where there are none."""
        found = tuple(schemas)
        return cls(json.dumps(found, ensure_ascii=False), found) if found else None


def schema(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A description in OpenAI's form; `parameters` is a JSON schema of an object."""
    told = {"name": name, "description": description, "parameters": dict(parameters)}
    return {"type": "function", "function": told}


def described(source: str, given: Any) -> dict[str, Any]:
    """A description that somebody wrote, in OpenAI's form: with or without `{type: function, function: ...}` around it.
    Raises ValueError, saying what is wrong with it."""
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise ValueError(f"{source} is no description of a tool: it has no `name`")
    parameters = inner.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise ValueError(f"{source}: `parameters` of {inner['name']} is no JSON schema of an object")
    try:
        json.dumps(parameters)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: `parameters` of {inner['name']} is no JSON: {error}") from None
    return schema(inner["name"], str(inner.get("description") or ""), parameters)
