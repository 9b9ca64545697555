r"""Judges by name: whether an answer is the one that its row holds. None needs code, and none pays for a cut answer.

What is compared is what stands after `####` or in `\boxed{}`, where an answer marks something so, else all of it, or
of `number` and `choice` what looks like one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from actors.door import Judged
from actors.environments import answers, functions_parse
from actors.environments.math import LONGEST, canonical, equal
from protocols.errors import SettingError

LETTER = re.compile(r"[(\[]?([A-Z])[)\].:]?")
FIRST_LETTER = re.compile(r"[(\[]?([A-Z])[)\].:]\s.*", re.DOTALL)
"""As an answer repeats its choice, `B) because of it`; `A cat` begins with no letter of a choice."""
LAST_LETTER = re.compile(
    r"(?:answer|choice|option)\s*(?:is\b\s*)?[:=]?\s*\**\(?(?!I\s+\w)([A-Z])\b(?![A-Za-z'])"
    r"|\(([A-Z])\)|^\W*([A-Z])\W*$|\bis:?\s+\**\(?([A-Z])\W*$",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer and what it was asked by: `wanted` is the row's own answer, `turn` how many came before it."""

    question: str
    text: str
    wanted: Any
    row: dict
    cut: bool
    turn: int


class Judge(Protocol):
    """What scores answers. It may take `longest_s` for one; `needs_answer`: rows have to hold the right one."""

    longest_s: float
    needs_answer: bool

    def judge(self, answered: Answered) -> Judged:
        """Raises EpisodeFailure where it cannot say."""
        ...


class Known:
    """A judge by name: `read` makes an answer comparable, None where it holds none; `same` compares it."""

    needs_answer, longest_s = True, 0.0

    def __init__(self, name: str):
        self._read, self._same, self.wants = KNOWN[name]

    def judge(self, answered: Answered) -> Judged:
        found = self._read(answers.said(answered.text))
        right = found is not None and not answered.cut and self._same(found, answered.wanted)
        return Judged(float(right), right, answer=found or "")

    def wrong(self, wanted: Any) -> str:
        """What is wrong with the answer of a row, in words that follow the name of its column; empty where nothing."""
        return self.wants(wanted)


def find(name: str, setting: str, cure: str) -> Known:
    """Raises SettingError."""
    if name not in KNOWN:
        raise SettingError(setting, f"there is no judge {name!r}", cure)
    return Known(name)


def _final(text: str) -> str:
    found = (answers.final_answer(text), answers.headed(text), text)
    return next(one for one in found if one is not None)


def _words(text: str) -> str | None:
    return " ".join(_final(text).split()) or None


def _number(text: str) -> str | None:
    marked = answers.final_answer(text)
    return answers.last_number(text) if marked is None else answers.number(marked)


def _expression(text: str) -> str | None:
    found = " ".join(_final(text).split())
    return canonical(found) or None if len(found) <= LONGEST else None


def _letter(text: str) -> str | None:
    """Of what is marked, else of all of it: the letter that it is or begins with, else the last that it calls so."""
    marked = answers.final_answer(text)
    inside = None if marked is None else re.sub(r"\\text\w*\s*\{([^{}]*)\}", r"\1", marked).strip()
    for said in (inside, text.strip()):
        if said is None:
            continue
        if found := LETTER.fullmatch(said) or (FIRST_LETTER.fullmatch(said) if said is inside else None):
            return found[1]
        called = [next(filter(None, found.groups())) for found in LAST_LETTER.finditer(said)]
        if called := [letter for letter in called if letter.isupper()]:
            return called[-1]
    return None


def _json(text: str) -> str | None:
    try:
        return json.dumps(functions_parse.value_of(text), sort_keys=True)
    except ValueError:
        return None


def _fits(found: str, schema: Any) -> bool:
    import jsonschema

    return jsonschema.Draft202012Validator(_schema(schema)).is_valid(json.loads(found))


def _schema(schema: Any) -> dict:
    found = json.loads(schema) if isinstance(schema, str) else schema
    if not isinstance(found, dict):
        raise ValueError("no map")
    return found


def _wanted_letter(wanted: Any) -> str | None:
    """The letter of a row: A, (A), or the place of the right choice, from 0."""
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        return chr(ord("A") + wanted) if 0 <= wanted < 26 else None
    return found[1] if isinstance(wanted, str) and (found := LETTER.fullmatch(wanted.strip())) else None


def _wanted_number(wanted: Any) -> str | None:
    """The one number that a row holds; of a text the one that it marks, where it marks one."""
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return answers.number(str(wanted))
    if not isinstance(wanted, str):
        return None
    marked = answers.final_answer(wanted)
    return answers.number(wanted if marked is None else marked)


def _text_wanted(wanted: Any) -> str:
    return "" if isinstance(wanted, str | int | float) and str(wanted).strip() else "is no text and no number"


def _schema_wanted(wanted: Any) -> str:
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(_schema(wanted))
    except (ValueError, jsonschema.SchemaError) as error:
        return f"is no JSON schema: {' '.join(str(error).split())[:100]}"
    return ""


KNOWN: dict[str, tuple[Callable[[str], str | None], Callable[[str, Any], bool], Callable[[Any], str]]] = {
    "exact": (_words, lambda found, wanted: found == _words(str(wanted)), _text_wanted),
    "number": (
        _number,
        lambda found, wanted: found == _wanted_number(wanted),
        lambda wanted: "" if _wanted_number(wanted) else "is no number",
    ),
    "math": (_expression, lambda found, wanted: equal(_final(str(wanted)), found), _text_wanted),
    "choice": (
        _letter,
        lambda found, wanted: found == _wanted_letter(wanted),
        lambda wanted: "" if _wanted_letter(wanted) else "is neither a letter from A nor a place from 0",
    ),
    "json_schema": (_json, _fits, _schema_wanted),
}
NAMES = tuple(KNOWN)
