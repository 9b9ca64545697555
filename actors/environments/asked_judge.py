"""A judge that is asked: a language model behind a chat endpoint, or a service of one's own.

    reward: {judge: {endpoint: http://host:8000/v1, model: NAME, prompt: "... {text} ... Mark it: 0 to 10", best: 10}}
    reward: {judge: {endpoint: http://host:8000/v1, model: NAME, graded: true}}
    reward: {judge: {endpoint: http://host:9000/score}}

The model's mark is the last number of what it says; reward = mark / best. `graded` asks as graded_mark.py says.
Without a model the endpoint is sent
{"text", "row", "cut", "turn"} and answers as a reward function does. Both are asked through the teacher's client: with
its retries, limits and budget. Who is asked the same again is not asked: equal answers get equal rewards.
"""

from __future__ import annotations

import asyncio
import json
import string
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from actors import door
from actors.door import EpisodeFailure, Judged
from actors.engines.teacher import Teacher
from actors.environments import answers, graded_mark
from actors.environments.judges import Answered
from actors.messages import message
from actors.teacher_config import TeacherSettings
from protocols import metrics
from protocols.errors import SettingError

SETTING = "environment.options.reward.judge"
KEPT = 4096  # answers of an endpoint
SPARE_S = 1.0  # beyond the client's own deadline


class JudgeSettings(TeacherSettings):
    """Whom to ask, and how."""

    place: ClassVar[str] = SETTING
    who: ClassVar[str] = "judge"
    address: ClassVar[str] = "endpoint"

    url: str = Field(alias="endpoint")
    model: str | None = Field(default=None, min_length=1)  # pyright: ignore[reportIncompatibleVariableOverride]  None: a service
    prompt: str = ""
    best: float = Field(default=1.0, gt=0)
    graded: bool = False
    temperature: float | None = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=20.0, gt=0)
    retries: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _asks(self):
        if self.graded and (self.model is None or self.prompt or self.best != 1):
            raise ValueError("graded asks a model in words of its own: name one, and leave prompt and best out")
        if self.model is not None and not self.graded and "{text}" not in self.prompt:
            raise ValueError("prompt must hold {text}, where the answer to judge stands")
        if self.model is None and (self.prompt or self.best != 1):
            raise ValueError("prompt and best are for a model: name one, or leave them out")
        if self.model is None and self.budget_tokens is not None:
            raise ValueError("budget_tokens counts what a model uses: name one, or leave it out")
        list(string.Formatter().parse(self.prompt))  # raises ValueError
        return self


def find(reward: dict, cure: str) -> AskedJudge:
    """Raises SettingError."""
    if set(reward) != {"judge"} or not isinstance(reward["judge"], dict):
        raise SettingError("environment.options.reward", f"{reward!r} names no judge", cure)
    try:
        settings = JudgeSettings.model_validate(reward["judge"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([SETTING, *map(str, first["loc"])])
        raise SettingError(where, first["msg"].removeprefix("Value error, "), "See docs/your-data.md") from None
    settings.key()
    return _one(settings.model_dump_json(by_alias=True))


@lru_cache(None)
def _one(settings: str) -> AskedJudge:
    """One for all environments of this process: its budget and its limits are theirs together."""
    return AskedJudge(JudgeSettings.model_validate_json(settings))


class AskedJudge:
    """Asks on an event loop of its own, from any thread."""

    needs_answer = False

    def __init__(self, settings: JudgeSettings):
        self.graded = settings.graded
        self._settings = settings
        self.longest_s = settings.deadline_s + SPARE_S
        self._asked: OrderedDict[str, Future[Judged]] = OrderedDict()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._teacher: Teacher | None = None

    def judge(self, answered: Answered) -> Judged:
        """Raises EpisodeFailure where no mark comes, SettingError where none ever will, TeacherBudget."""
        key, ask = self._question(answered)
        with self._lock:
            self._client()  # to import it may take longer than an answer: not within the wait for that
            found = self._asked.get(key)
            if found is None:
                found = self._asked[key] = asyncio.run_coroutine_threadsafe(ask(), self._living())
                if len(self._asked) > KEPT:
                    self._asked.popitem(last=False)
        try:
            return found.result(self.longest_s)
        except TimeoutError:
            raise EpisodeFailure("teacher", f"the judge gave no mark within {self.longest_s:g} s") from None
        finally:
            if found.cancelled() or not found.done() or found.exception() is not None:
                with self._lock:
                    self._asked.pop(key, None)  # the next one asks again

    def _question(self, answered: Answered) -> tuple[str, Callable[[], Coroutine[Any, Any, Judged]]]:
        if self._settings.model is None:
            body = {"text": answered.text, "row": answered.row, "cut": answered.cut, "turn": answered.turn}
            return json.dumps(body, sort_keys=True), lambda: self._service(body)
        if self._settings.graded:
            prompt = graded_mark.prompt(answered.question, answered.wanted, answered.text)
            return prompt, lambda: self._graded(prompt)
        known = {"question": answered.question, "text": answered.text}
        known |= {} if answered.wanted is None else {"answer": answered.wanted}  # else a column of that name is it
        try:
            prompt = self._settings.prompt.format_map(answered.row | known)
        except (KeyError, IndexError) as error:
            problem = f"{error} is no column, nor {', '.join(known)}"
            raise SettingError(f"{SETTING}.prompt", problem, f"Rows have {', '.join(answered.row)}") from None
        return prompt, lambda: self._model(prompt)

    async def _model(self, prompt: str) -> Judged:
        said = await self._client().write([message("user", prompt)])
        value = answers.last_mark(said, self._settings.best)
        if value is None or not 0 <= value <= self._settings.best:
            shown = " ".join(said.split())[-80:]
            problem = f"said {shown!r}, which ends in no mark from 0 to best={self._settings.best:g}"
            raise EpisodeFailure("teacher", f"the judge {problem}")
        return Judged(value / self._settings.best, value >= self._settings.best)

    async def _graded(self, prompt: str) -> Judged:
        mark = graded_mark.mark(await self._client().write([message("user", prompt)]))
        metrics.GRADED_MARKS.labels(result="unparsed" if mark is None else "judged").inc()
        return Judged((mark or 0) / graded_mark.BEST, mark is not None and mark >= graded_mark.REACHED)

    async def _service(self, body: dict) -> Judged:
        return door.judged(f"the judge at {self._settings.host}", await self._client().post(body))

    def _client(self) -> Teacher:
        if self._teacher is None:
            self._teacher = Teacher(self._settings)
        return self._teacher

    def _living(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()
        return self._loop
