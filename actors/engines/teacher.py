"""A teacher: text for chat messages from any OpenAI-compatible endpoint (RISE by distillation, arXiv 2407.18219)."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from actors import door
from actors.door import EpisodeFailure
from actors.teacher_config import TeacherSettings
from protocols import metrics
from protocols.errors import RedraftError, SettingError

log = logging.getLogger("redraft.teacher")
THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
LOST = 50  # failures in a row after which the teacher counts as gone
SHOWN = 300  # characters of what an endpoint says about an error


class TeacherBudget(RedraftError):
    """All tokens that this actor may use of its teacher are used."""

    def __init__(self, used: int, budget: int, place: str = TeacherSettings.place):
        self._made_of = (used, budget, place)
        super().__init__(
            f"{place}.budget_tokens: {used} of {budget} tokens of the {place.rpartition('.')[2]} are used. "
            "Raise it, or leave it out for no limit, and resume the run"
        )

    def __reduce__(self):  # an error crosses processes whole
        return type(self), self._made_of


class Teacher:
    """Asks the endpoint that `settings` name. Belongs to the event loop on which it is first used.

    Raises SettingError where there is no key. The key is read once and shown nowhere.
    """

    def __init__(self, settings: TeacherSettings):
        from openai import AsyncOpenAI

        self._settings, self._key = settings, settings.key()
        self._client = AsyncOpenAI(
            api_key=self._key, base_url=settings.url, timeout=settings.timeout_s, max_retries=settings.retries
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._logged: set[int] = set()
        self._failed = 0  # in a row
        self._completion = False  # whether the endpoint calls the longest answer max_completion_tokens
        self.used = 0
        """Tokens so far: prompts and answers, as the endpoint counts them."""

    async def write(self, messages: list[dict]) -> str:
        """The teacher's answer to chat messages (role, content).

        Returns or raises within `settings.deadline_s` = timeout_s * (retries + 1) and the waits between tries (0.5 s
        doubled each time, at most 8 s); the wait for a free slot, and a longer Retry-After, count against it.
        Raises EpisodeFailure when no answer came, SettingError when none ever will, TeacherBudget.
        """
        return await self._within(lambda: self._answer(messages))

    async def post(self, body: dict) -> Any:
        """What the URL itself answers to a POST of this JSON; bounded, and raising, as `write`."""
        return await self._within(lambda: self._posted(body))

    async def _within(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        limit, waits, begun = self._settings.deadline_s, time.monotonic(), math.inf
        try:
            async with asyncio.timeout(limit), self._slots:
                begun = time.monotonic()
                budget = self._settings.budget_tokens
                if budget is not None and self.used >= budget:
                    raise TeacherBudget(self.used, budget, self._settings.place)
                return await ask()
        except TimeoutError:
            if begun - waits < limit / 2:  # else it had no fair time of it
                raise self._failure("timeout", f"gave no answer within {limit:g} s") from None
            metrics.TEACHER_FAILURES.labels(reason="queue").inc()
            most = f"{self._settings.place}.concurrency={self._settings.concurrency}"
            problem = f"had a free slot of {most} too late, or not at all, within {limit:g} s"
            raise EpisodeFailure("teacher", f"the {self._settings.who} at {self._settings.host} {problem}") from None

    async def _posted(self, body: dict) -> Any:
        metrics.TEACHER_REQUESTS.inc()
        began = time.monotonic()
        answer = await self._call(lambda: self._client.post(self._settings.url, cast_to=object, body=body))
        metrics.TEACHER_SECONDS.observe(time.monotonic() - began)
        self._failed = 0
        return answer

    async def close(self) -> None:
        """Closes the connections; what is under way fails."""
        await self._client.close()

    async def _answer(self, messages: list[dict]) -> str:
        metrics.TEACHER_REQUESTS.inc()
        began = time.monotonic()
        answer = await self._ask(messages)
        metrics.TEACHER_SECONDS.observe(time.monotonic() - began)
        counted = self._count(answer)
        text, cut = _text(answer)
        if text is None:
            raise self._failure("answer", "sent something other than a chat completion with text")
        if cut:
            setting = f"{self._settings.place}.max_tokens"
            problem = f"gave an answer that was cut at {setting}={self._settings.max_tokens}"
            raise self._failure("cut", problem, setting, "Raise it")
        text = THOUGHTS.sub("", text).strip()
        if not text:
            raise self._failure("empty", "sent an empty answer")
        text = door.text(f"the {self._settings.who} at {self._settings.host}", text)
        if not counted and self._settings.budget_tokens is not None:
            problem = f"{self._settings.host} does not say how many tokens an answer used"
            raise SettingError(
                f"{self._settings.place}.budget_tokens", problem, "Leave it out, or use another endpoint"
            )
        self._failed = 0
        return text

    async def _ask(self, messages: list[dict]) -> Any:
        """What the client makes of the response: a ChatCompletion, unless the endpoint sent something else."""

        def create() -> Awaitable[Any]:
            return self._client.chat.completions.create(
                model=cast(str, self._settings.model), messages=cast(Any, messages), **self._limits()
            )

        return await self._call(create)

    async def _call(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What the client was asked for, with its errors as this project's."""
        import openai

        older = not self._completion  # the name by which this request calls the longest answer
        try:
            return await ask()
        except openai.APITimeoutError:
            tries, limit = self._settings.retries + 1, self._settings.timeout_s
            raise self._failure("timeout", f"gave no answer in {tries} tries of {limit:g} s") from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise self._failure("connection", f"cannot be reached: {cause}") from None
        except openai.APIStatusError as error:
            if error.status_code == 400 and older and "max_completion_tokens" in error.message:
                self._completion = True  # as newer models call it: ask again by that name
                return await self._call(ask)
            if error.status_code == 400 and self._settings.temperature is not None and error.param == "temperature":
                problem = f"{self._settings.host} takes no {self._settings.temperature:g} for {self._settings.model!r}"
                raise SettingError(f"{self._settings.place}.temperature", problem, "Set it to null") from None
            raise self._refused(error.status_code, error.message) from None
        except (openai.OpenAIError, ValueError) as error:  # not JSON, for one
            raise self._failure("answer", f"sent an answer that cannot be read: {type(error).__name__}") from None

    def _limits(self) -> dict[str, Any]:
        settings = self._settings
        limits = {"max_completion_tokens" if self._completion else "max_tokens": settings.max_tokens}
        return limits if settings.temperature is None else limits | {"temperature": settings.temperature}

    def _refused(self, status: int, message: str) -> Exception:
        """The error that an HTTP status stands for. What the endpoint says goes to the log, once a status."""
        settings = self._settings
        if status in (401, 403):
            problem = f"{settings.host} refuses the key in {settings.key_env} (status {status})"
            return SettingError(f"{settings.place}.key_env", problem, f"Set it to a key that may use {settings.model}")
        if status == 404:
            lacks = f"{settings.model!r}, or no chat endpoint" if settings.model else "answer"
            problem = f"{settings.host} has no {lacks} at this URL (status 404)"
            return SettingError(f"{settings.place}.model", problem, f"See {settings.url.rstrip('/')}/models")
        if status not in self._logged:
            self._logged.add(status)
            said = " ".join(message.replace(self._key, "***").split())[:SHOWN]
            log.warning("the %s at %s answers %d: %s; said once a status", settings.who, settings.host, status, said)
        return self._failure(str(status), f"answers with status {status}")

    def _failure(
        self,
        reason: str,
        what: str,
        setting: str = "",
        cure: str = "Make sure that it runs and answers, then use --resume",
    ) -> Exception:
        """Ends the episode; after LOST of them without an answer between, the run: no episode would end better."""
        metrics.TEACHER_FAILURES.labels(reason=reason).inc()
        self._failed += 1
        if self._failed < LOST:
            return EpisodeFailure("teacher", f"the {self._settings.who} at {self._settings.host} {what}")
        problem = f"{self._settings.host} {what}; {self._failed} requests in a row have failed"
        return SettingError(setting or f"{self._settings.place}.{self._settings.address}", problem, cure)

    def _count(self, answer: Any) -> bool:
        """Adds the tokens that the endpoint counted; False where it counted none."""
        usage = getattr(answer, "usage", None)
        said = {kind: getattr(usage, f"{kind}_tokens", None) for kind in ("prompt", "completion")}
        counts = {kind: count for kind, count in said.items() if isinstance(count, int) and count >= 0}
        if len(counts) < len(said):
            return False
        for kind, count in counts.items():
            metrics.TEACHER_TOKENS.labels(kind=kind).inc(count)
            self.used += count
        return True


def _text(answer: Any) -> tuple[str | None, bool]:
    """The text of an answer, and whether it was cut. The client builds objects from whatever JSON came: nothing of them
    is certain."""
    try:
        choice = answer.choices[0]
        text, cut = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, KeyError, TypeError):
        return None, False
    return (text, cut) if isinstance(text, str) else (None, cut)
