"""`rows`: questions out of a file of one's own, and a reward that is a function of one's own or a judge by name.

    environment: {name: rows, options: {reward: "mine.py:score", prompt: question, system: "Be short."}}
    data: {path: train.jsonl, test: test.jsonl}

docs/your-data.md has the whole of it. Rows are read by rows_data.py and made into tasks by rows_columns.py,
and answers are judged by rewards.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from actors import messages
from actors.config import DataSettings
from actors.door import Judged
from actors.environments import rewards, rows_data
from actors.environments.base import Cut, OneAnswer, Verdict
from actors.environments.judges import Answered
from actors.environments.rows_columns import OPTIONS, Columns, at_least, of_split
from actors.messages import Question
from protocols.errors import SettingError

LIMIT_S, PROCESSES = 10.0, 2
LONGEST_ANSWER = 200  # characters of an answer that nothing parses, in the figures


class Rows(OneAnswer):
    """Questions of one's own.

    `reward`: FILE.py:function, a judge by name, or {judge: {endpoint, model, prompt}}. `prompt`: the column of the
    question, a text or chat messages, or a text with {columns} in it. `answer`: the column of the right answer.
    `system`: the system prompt of questions that bring none. `id`: a column of ids (else a digest of the row).
    `turns`: an episode ends after so many answers, or the first right one, as rollouts of many actions need it.
    `limit_s`, `processes`: longest time for one reward, and how many processes of a function there are.
    """

    feedbacks = ("binary", "blank", "residual")
    reads = ("test", "config")

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
        processes: int = PROCESSES,
    ):
        super().__init__(feedback)
        self._columns = Columns(reward, prompt, answer, system, id)
        at_least(1, turns=turns, processes=processes)
        if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or limit_s <= 0:
            raise SettingError(f"{OPTIONS}.limit_s", f"{limit_s!r} is no time", "Give seconds above 0")
        if not rewards.is_own(reward) and (limit_s, processes) != (LIMIT_S, PROCESSES):
            raise SettingError(f"{OPTIONS}.limit_s", "only a function of your own has processes", "Leave it out")
        self._judge = rewards.find(reward, limit_s, processes)
        self._turns, self._turn = turns, 0
        self.many_actions = turns is not None and turns > 1
        self.longest_s = self._judge.longest_s

    @classmethod
    def at_once(cls, options: Mapping[str, Any]) -> int | None:
        """As many as processes run the reward."""
        return options.get("processes", PROCESSES) if rewards.is_own(options.get("reward")) else None

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
        return of_split(tasks, split) if undivided else tasks

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

    def posed(self, task: dict, query: str) -> dict:
        """Another question, asked as that task is, which a judge that grades can mark. Raises SettingError where the
        reward is none."""
        if not getattr(self._judge, "graded", False):
            problem = "compares with a row's own answer, which a question that a model makes does not have"
            raise SettingError(f"{OPTIONS}.reward", problem, "Use {judge: {endpoint, model, graded: true}}")
        *before, last = messages.listed(task["question"])
        asked = query if isinstance(task["question"], str) else [*before, messages.message(last["role"], query)]
        return {"question": asked, "row": {}}

    def hint(self) -> str | None:
        known = self.reference(self.task)
        return None if known is None else f"\n\nThe right answer is {known}. Show how to get there, ending with it."

    def _judged(self, task: dict, text: str) -> Judged:
        asked = messages.asked(task["question"])
        wanted = task.get("answer", task.get("reference"))  # the latter where a model made the task
        cut = isinstance(text, Cut)
        return self._judge.judge(Answered(asked, str(text), wanted, task["row"], cut, self._turn))

    def _told(self, found: Judged) -> str:
        if self.feedback == "residual" and found.said is not None:
            return f"{found.said}\n\n{messages.asked(self.question(self.task))}"
        return self.say(Verdict(1.0 if found.success else 0.0))


def _answer(found: Judged, text: str) -> str:
    """What equal answers have in common: what was found in the text, else the text itself."""
    if found.answer is not None:
        return found.answer
    said = " ".join(text.split())
    short = said[:LONGEST_ANSWER]
    return said if said == short else f"{short}... {hashlib.blake2b(said.encode(), digest_size=4).hexdigest()}"
