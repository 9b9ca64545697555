"""`rows`: questions out of a file of one's own, and a reward that is a function of one's own or a judge by name.

    environment: {name: rows, options: {reward: "mine.py:score", prompt: question, system: "Be short."}}
    data: {path: train.jsonl, test: test.jsonl}

docs/your-data.md has the whole of it. Rows are read by rows_data.py, answers are judged by rewards.py.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from typing import Any

from actors import messages
from actors.config import DataSettings
from actors.door import Judged
from actors.environments import judges, rewards, rows_data
from actors.environments.base import Cut, OneAnswer, Verdict
from actors.environments.files import held_out, shuffled
from actors.environments.judges import Answered, Known
from actors.environments.rows_data import Placed
from actors.messages import Question
from protocols.errors import SettingError

LIMIT_S = 10.0
LONGEST_ANSWER = 200  # characters of an answer that nothing parses, in the figures
OPTIONS = "environment.options"


class Rows(OneAnswer):
    """Questions of one's own.

    `reward`: FILE.py:function, a judge by name, or {judge: {endpoint, model, prompt}}. `prompt`: the column of the
    question, a text or chat messages, or a text with {columns} in it. `answer`: the column of the right answer.
    `system`: the system prompt of questions that bring none. `id`: a column of ids (else a digest of the row).
    `turns`: an episode ends after so many answers, or the first right one, as rollouts of many actions need it.
    `limit_s`, `processes`: longest time for one reward, and how many processes of a function there are.
    """

    feedbacks = ("binary", "blank", "residual")

    def __init__(
        self,
        feedback: str = "binary",
        reward: Any = None,
        prompt: str = "prompt",
        answer: str | None = None,
        system: str | None = None,
        id: str | None = None,
        turns: int | None = None,
        limit_s: float = LIMIT_S,
        processes: int = 2,
    ):
        super().__init__(feedback)
        self._columns = Columns(reward, prompt, answer, system, id)
        _at_least(1, turns=turns, processes=processes)
        if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or limit_s <= 0:
            raise SettingError(f"{OPTIONS}.limit_s", f"{limit_s!r} is no time", "Give seconds above 0")
        own = isinstance(reward, str) and ":" in reward
        if not own and (limit_s, processes) != (LIMIT_S, 2):
            raise SettingError(f"{OPTIONS}.limit_s", "only a function of your own has processes", "Leave it out")
        self._judge = rewards.find(reward, limit_s, processes)
        self._turns, self._turn = turns, 0
        self.many_actions = turns is not None and turns > 1
        self.longest_s = self._judge.longest_s

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        raise SettingError(OPTIONS, "rows cannot be read without them", "Ask actors.environments.tasks")

    @classmethod
    def tasks_with(cls, options: Mapping[str, Any], data: DataSettings, split: str) -> list[dict]:
        named = ("reward", "prompt", "answer", "system", "id")
        given: dict[str, Any] = {"reward": None} | {key: options[key] for key in named if key in options}
        columns = Columns(**given)
        placed, undivided = rows_data.read(data, split)
        tasks = columns.tasks(placed)
        return _of_split(tasks, split) if undivided else tasks

    def question(self, task: dict) -> Question:
        return task["question"]

    def start(self, task: dict) -> Question:
        self._turn = 0
        return self.question(task)

    def judge(self, task: dict, text: str) -> Verdict:
        found = self._judged(task, text)
        return Verdict(found.reward, found.answer)

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        found = self._judged(self.task, text)
        self._turn += 1
        ended = self._turns is not None and found.success
        cut_off = self._turns is not None and self._turn >= self._turns and not ended
        info = {"success": found.success, "answer": _answer(found, text), "parts": found.parts}
        return self._told(found), found.reward, ended, cut_off, info

    def reference(self, task: dict) -> str | None:
        """A right answer as a model may write it; None where the row holds none."""
        wanted = task.get("answer")
        if wanted is None or self._columns.reward == "json_schema":
            return None
        if self._columns.reward == "choice" and isinstance(wanted, int):
            return chr(ord("A") + wanted)
        return wanted if isinstance(wanted, str) else json.dumps(wanted)

    def hint(self) -> str | None:
        known = self.reference(self.task)
        return None if known is None else f"\n\nThe right answer is {known}. Show how to get there, ending with it."

    def _judged(self, task: dict, text: str) -> Judged:
        asked = messages.asked(task["question"])
        return self._judge.judge(
            Answered(asked, str(text), task.get("answer"), task["row"], isinstance(text, Cut), self._turn)
        )

    def _told(self, found: Judged) -> str:
        if self.feedback == "residual" and found.said is not None:
            return f"{found.said}\n\n{messages.asked(self.question(self.task))}"
        return self.say(Verdict(1.0 if found.success else 0.0))


class Columns:
    """Which columns are what. Makes tasks of rows; raises SettingError that names file, line and column."""

    def __init__(
        self,
        reward: Any,
        prompt: str = "prompt",
        answer: str | None = None,
        system: str | None = None,
        id: str | None = None,
    ):
        if reward is None:
            cure = f"Name {', '.join(judges.NAMES)}, or FILE.py:function of your own"
            raise SettingError(rewards.SETTING, "rows needs a reward", cure)
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


def _of_split(tasks: list[dict], split: str) -> list[dict]:
    """A fifth is for testing, by the question alone: at least one, the same ones in whatever order the rows come."""
    keys = [json.dumps(task["question"], sort_keys=True) for task in tasks]
    tested = {key for key in keys if held_out(key)} or set(sorted(set(keys), key=shuffled)[:1])
    return [task for task, key in zip(tasks, keys, strict=True) if (key in tested) == (split == "test")]


def _digest(row: dict) -> str:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()


def _answer(found: Judged, text: str) -> str:
    """What equal answers have in common: what was found in the text, else the text itself."""
    if found.answer is not None:
        return found.answer
    said = " ".join(text.split())
    short = said[:LONGEST_ANSWER]
    return said if said == short else f"{short}... {hashlib.blake2b(said.encode(), digest_size=4).hexdigest()}"


def _at_least(least: int, **values: Any) -> None:
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SettingError(
                f"{OPTIONS}.{key}", f"{value!r} is no whole number from {least}", f"Give {least} or more"
            )
