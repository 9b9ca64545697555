"""What is wrong with a recipe, in words: each mistake with its key, its line, and what was probably meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from protocols.errors import SettingError

NEAR = 0.75  # how alike a key of another section must be to be offered; difflib's ratio


class RecipeError(SettingError):
    """Several mistakes of one recipe, a line each. `setting` is the first one's."""

    def __init__(self, mistakes: Sequence[SettingError]):
        super().__init__(mistakes[0].setting, "")
        self.mistakes = tuple(mistakes)
        self.args = ("\n".join([f"{len(mistakes)} mistakes in the recipe:", *(f"  {one}" for one in mistakes)]),)

    def __reduce__(self):
        return type(self), (self.mistakes,)


def clear(error: ValidationError, model: type[BaseModel], lines: Mapping[str, int]) -> SettingError:
    """Every problem of a `model`, in a line each. `lines` says where its keys stand in a file."""
    mistakes = [_mistake(one, model, lines) for one in error.errors()]
    return mistakes[0] if len(mistakes) == 1 else RecipeError(mistakes)


def _mistake(found: Any, model: type[BaseModel], lines: Mapping[str, int]) -> SettingError:
    """Which key, what is wrong with which value, what is allowed."""
    place = [str(part) for part in found["loc"]]
    key = ".".join(part for part in place if not _is_tag(part))
    at = f" (line {lines[key]})" if key in lines else ""
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return SettingError(key, f"there is no such key{at}", _instead(place, model))
    if found["type"] == "missing":
        return SettingError(key, "is missing", "Add it: docs/reference.md says what it may be")
    if found["type"] == "value_error":
        return SettingError(key or "recipe", message + at)
    return SettingError(key, f"{message} (found {found['input']!r}){at}")


def _instead(place: list[str], model: type[BaseModel]) -> str:
    """The key that was probably meant, here or in another section; else what is allowed here."""
    allowed = _allowed(place[:-1], model)
    if close := difflib.get_close_matches(place[-1], allowed, 1):
        return f"Did you mean {close[0]}? Allowed here: {', '.join(allowed)}"
    ends: dict[str, list[str]] = {}
    own = ".".join(part for part in place if not _is_tag(part))  # of another kind of this section
    for dotted in _dotted(model):
        if dotted != own:
            ends.setdefault(dotted.rpartition(".")[2], []).append(dotted)
    close = difflib.get_close_matches(place[-1], list(ends), 1, NEAR)
    meant = f"Did you mean {' or '.join(dict.fromkeys(ends[close[0]]))}? " if close else ""
    return f"{meant}Allowed here: {', '.join(allowed)}"


def _dotted(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key of a recipe."""
    for name, field in model.model_fields.items():
        yield above + name
        for inner in _models(field.annotation):
            yield from _dotted(inner, f"{above}{name}.")


def _is_tag(part: str) -> bool:
    """Whether it is the tag, in angle brackets, of a kind that `one_of` chose."""
    return part.startswith("<") and part.endswith(">")


def _allowed(place: list[str], model: type[BaseModel]) -> list[str]:
    """The keys of the section at `place`."""
    kinds: list[type[BaseModel]] = [model]
    for part in place:
        if part.isdigit():  # one of a list
            continue
        if _is_tag(part):
            kinds = [kind for kind in kinds if _tag(kind) == part]
        else:
            fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
            kinds = [found for field in fields for found in _models(field.annotation)]
    return [key for kind in kinds for key in kind.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _tag(model: type[BaseModel]) -> str:
    """The tag of one kind of part: that of its name, or of parts of the user's own."""
    name = model.model_fields["name"].annotation
    return f"<{typing.get_args(name)[0]}>" if typing.get_origin(name) is Literal else "<own>"
