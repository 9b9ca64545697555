"""Python functions as tools: the description from types and docstring, arguments checked against the types.

The first paragraph of the docstring says what the tool does; a section `Args:` has a line `name: words` a parameter.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from actors import tools
from actors.tools import Answer, Tool

ARGS = re.compile(r"^(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
ARG = re.compile(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")
KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def tool(function: Callable, openai: dict[str, Any] | None = None) -> Tool:
    """The tool that a function is; `openai` describes it in place of its types and docstring, and its arguments then go
    in as they come. Raises ValueError, saying what the function lacks."""
    name = getattr(function, "__name__", type(function).__name__)
    if openai:
        return Tool(tools.described(name, openai), lambda arguments: _called(function, arguments))
    (model, fields), said = _model(name, function), inspect.getdoc(function) or ""
    if not said.strip():
        raise ValueError(f"{name} has no docstring, and a model has to be told what it does")
    parameters = _plain(model.model_json_schema())
    parameters.setdefault("properties", {})
    for key, words in _arguments(said).items():
        if key in parameters["properties"]:
            parameters["properties"][key] = {"description": words} | parameters["properties"][key]
    schema = tools.schema(name, " ".join(said.split("\n\n")[0].split()), parameters)
    return Tool(schema, lambda arguments: _checked(function, model, fields, arguments))


def _checked(function: Callable, model: Any, fields: dict[str, str], arguments: dict[str, Any]) -> Answer:
    from pydantic import ValidationError

    try:
        found = model.model_validate(arguments)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors())
        return Answer(f"wrong arguments: {wrong}", refused=True)
    given = {key: getattr(found, field) for key, field in fields.items() if key in arguments}
    return _called(function, given)


def _called(function: Callable, arguments: dict[str, Any]) -> Answer:
    """What a tool raises is said to the model; what is no Exception (SystemExit, a panic) breaks the episode off."""
    try:
        came = function(**arguments)
        return Answer(asyncio.run(came) if inspect.iscoroutine(came) else came)
    except Exception as error:
        return Answer(f"{type(error).__name__}: {error}", refused=True)


def _model(name: str, function: Callable) -> tuple[Any, dict[str, str]]:
    """A pydantic model of the function's arguments, which refuses others, and its field of each. Raises ValueError."""
    from pydantic import ConfigDict, Field, create_model

    try:
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise ValueError(f"the types of {name} cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    for key, parameter in signature.parameters.items():
        if parameter.kind not in KINDS:
            raise ValueError(f"parameter {key} of {name} cannot be named in a call; give it a name of its own")
        if key not in hints:
            raise ValueError(f"parameter {key} of {name} has no type; write one, such as {key}: int")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[key] = (hints[key], Field(default, alias=key))
    # Names of their own, since pydantic keeps some (`schema`, `_x`) for itself; the alias is what a call says.
    own = {f"argument_{number}": kept for number, kept in enumerate(fields.values())}
    try:
        made = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **own)
        made.model_json_schema()
    except Exception as error:  # pydantic's own, of many kinds
        raise ValueError(f"a type of {name} has no JSON form: {error}".splitlines()[0]) from None
    return made, dict(zip(fields, own, strict=True))


def _plain(found: Any) -> Any:
    """A JSON schema without the titles that pydantic makes of names; a property may itself be called `title`."""
    if isinstance(found, list):
        return [_plain(one) for one in found]
    if not isinstance(found, dict):
        return found
    kept = {key: value for key, value in found.items() if not (key == "title" and isinstance(value, str))}
    return {
        key: {name: _plain(one) for name, one in value.items()} if key == "properties" else _plain(value)
        for key, value in kept.items()
        if key != "additionalProperties" or value is not False
    }


def _arguments(said: str) -> dict[str, str]:
    """What a docstring says of each parameter."""
    begin = ARGS.search(said)
    found: dict[str, str] = {}
    last = ""
    for line in said[begin.end() :].lstrip("\n").splitlines() if begin else ():
        if line and not line[0].isspace():
            break
        if argument := ARG.match(line):
            last = argument[1]
            found[last] = argument[2].strip()
        elif last and line.strip():
            found[last] += " " + line.strip()
    return {name: words for name, words in found.items() if words}
