"""Rows as tasks of `rows`: which column is what, ids, which rows are for testing. Errors name file, line, column."""

from __future__ import annotations

import hashlib
import json
import string
from typing import Any

from actors import messages
from actors.environments import judges
from actors.environments.files import held_out, shuffled
from actors.environments.judges import Known
from actors.environments.rows_data import Placed
from actors.messages import Question
from protocols.errors import SettingError

OPTIONS = "environment.options"


class Columns:
    """Which columns are what. Makes tasks of rows; raises SettingError that names file, line and column. `reward` is
    the name of a judge, where the rows have to hold what that compares with."""

    def __init__(
        self,
        reward: Any = None,
        prompt: str = "prompt",
        answer: str | None = None,
        system: str | None = None,
        id: str | None = None,
    ):
        for key, value in (("prompt", prompt), ("answer", answer), ("system", system), ("id", id)):
            if value is not None and not isinstance(value, str):
                raise SettingError(f"{OPTIONS}.{key}", f"{value!r} is no text", "Write a text")
        self.reward, self._system, self._id = reward, system, id
        self._known = Known(reward) if isinstance(reward, str) and reward in judges.KNOWN else None
        self._answer = "answer" if answer is None and self._known is not None else answer
        self._prompt = prompt
        try:
            self._within = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
        except ValueError as error:
            raise SettingError(f"{OPTIONS}.prompt", f"{prompt!r} is no template: {error}", "Write {{ for {") from None

    def tasks(self, placed: list[Placed]) -> list[dict]:
        """One for each row. A row that is there twice is a task twice, unless a column says its id."""
        found, seen = [], {}
        for where, row in placed:
            identity = self._identity(where, row)
            if identity in seen:
                if self._id is not None:
                    problem = f"{where}, column {self._id!r} has the id {row[self._id]!r} of {seen[identity][0]}"
                    raise SettingError("data.path", problem, "Give each row its own")
                seen[identity][1] += 1
                identity = f"{identity}-{seen[identity][1]}"
            seen[identity] = [where, 1]
            found.append({"id": identity, **self._task(where, row), "row": row})
        return found

    def _task(self, where: str, row: dict) -> dict:
        task: dict[str, Any] = {"question": self._question(where, row)}
        if self._answer is not None:
            wanted = self._value(where, row, self._answer, "answer")
            if self._known is not None and (problem := self._known.wrong(wanted)):
                raise SettingError("data.path", f"{where}, column {self._answer!r} {problem}", "Correct that row")
            task["answer"] = wanted
        level = row.get("level")
        return task | ({"level": level} if isinstance(level, int) and level >= 0 else {})

    def _question(self, where: str, row: dict) -> Question:
        if self._within:
            asked: Any = self._prompt.format_map(
                {name: self._value(where, row, name, "prompt") for name in self._within}
            )
        else:
            asked = self._value(where, row, self._prompt, "prompt")
        try:
            asked = _messages(asked)
            if not messages.asked(messages.checked(asked)).strip():
                raise ValueError("is empty")
        except ValueError as error:
            said = str(error) if str(error).startswith("is ") else f"cannot be asked: {error}"
            raise SettingError("data.path", f"{where}, column {self._prompt!r} {said}", "Correct that row") from None
        if self._system is None or messages.has_system(asked):
            return asked
        return [messages.message("system", self._system), *messages.listed(asked)]

    def _value(self, where: str, row: dict, column: str, option: str) -> Any:
        if row.get(column) is not None:
            return row[column]
        if column in row:
            raise SettingError("data.path", f"{where}, column {column!r} is empty", "Fill it, or leave that row out")
        cure = f"It has {', '.join(row) or 'none'}: set {OPTIONS}.{option} to one of them"
        raise SettingError("data.path", f"{where} has no column {column!r}", cure)

    def _identity(self, where: str, row: dict) -> str:
        if self._id is None:
            return f"rows/{_digest(row)}"
        found = self._value(where, row, self._id, "id")
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise SettingError(
                "data.path", f"{where}, column {self._id!r} holds no id: {found!r}", "Use texts or numbers"
            )
        return str(found)


def _messages(asked: Any) -> Question:
    """Chat messages with no more than role and content; content that is a list of texts becomes one."""
    if not isinstance(asked, list):
        if not isinstance(asked, str):
            raise ValueError("is neither a text nor a list of chat messages")
        return asked
    found = []
    for said in asked:
        fields = said if isinstance(said, dict) else {}
        content = fields.get("content")
        if isinstance(content, list):
            if other := [part for part in content if not (isinstance(part, dict) and part.get("type") == "text")]:
                raise ValueError(f"holds a part that is no text: {str(other[0])[:60]}")
            content = "".join(str(part.get("text", "")) for part in content)
        found.append({"role": fields.get("role"), "content": content})
    return found


def of_split(tasks: list[dict], split: str) -> list[dict]:
    """A fifth is for testing, by the question alone: at least one, the same ones in whatever order the rows come.

    Where all rows ask the same it is by all that they hold, and where they hold the same by their ids, which then
    number them.
    """
    for part in ("question", "row", "id"):
        keys = [json.dumps(task[part], sort_keys=True) for task in tasks]
        if len(set(keys)) > 1:
            break
    tested = {key for key in keys if held_out(key)} or set(sorted(set(keys), key=shuffled)[:1])
    return [task for task, key in zip(tasks, keys, strict=True) if (key in tested) == (split == "test")]


def _digest(row: dict) -> str:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()


def at_least(least: int, **values: Any) -> None:
    """Raises SettingError for an option that is no whole number from `least`; None is left out."""
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SettingError(
                f"{OPTIONS}.{key}", f"{value!r} is no whole number from {least}", f"Give {least} or more"
            )
