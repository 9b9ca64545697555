"""One door: what environments, task sources and teachers return becomes the contract here, or is named.

Behind the door nothing checks again. What does not fit raises EpisodeFailure, which ends its episode alone; tasks are
read before work starts, so what is wrong with them raises SettingError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, NamedTuple, TypeVar

import msgpack
import numpy as np

from actors import messages
from actors.messages import LONGEST_TEXT, Question
from protocols.errors import SettingError
from protocols.turns import TOO_LONG

T = TypeVar("T")

LARGEST = float(np.finfo(np.float32).max)
SHOWN = 80  # characters of a value in an error
PART = re.compile(r"[A-Za-z]\w{0,39}")
MOST_PARTS = 16  # named parts of one reward: each is a series of its own in the figures


class EpisodeFailure(Exception):
    """This episode cannot go on; the group can. `kind` is a metric label, one of KINDS."""

    KINDS = ("raised", "returned", "hung", TOO_LONG, "teacher")

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


def hung(what: str, limit_s: float) -> EpisodeFailure:
    """Of what did not answer in time; `what` may be empty."""
    return EpisodeFailure("hung", f"{what}{': ' if what else ''}no answer within environment.time_limit_s={limit_s:g}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the environment made of one answer. `parsed`: whether it found one in the text; None where it is silent.
    `score`: what the episode is worth so far; None where the environment does not say. `parts`: what the reward is made
    of, by name. `good`: whether this step was, where the environment flags its steps. `state`: what it calls the state
    that the step led to, where it does."""

    reward: float
    success: bool
    answer: str | None
    terminated: bool
    truncated: bool
    seconds: float
    refused: bool = False
    parsed: bool | None = None
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    good: bool | None = None
    state: str | None = None

    @property
    def over(self) -> bool:
        """Whether the environment has ended the episode."""
        return self.terminated or self.truncated


@dataclass(frozen=True, slots=True)
class Judged:
    """What a reward says of one answer. `answer` is its canonical form ("": it holds none; None: the reward parses
    nothing), `said` what the model is told of it."""

    reward: float
    success: bool
    answer: str | None = None
    said: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


class _Wrong(ValueError):
    """What is wrong with a value, in words that follow the name of whoever returned it."""


# Environments --------------------------------------------------------------------------------------------------------


def outcome(environment: str, returned: Any, seconds: float) -> tuple[str, Outcome]:
    """The observation and the outcome that `step` returned, in `seconds`. Numbers and booleans of numpy and others
    count as what they are; an `answer` that is no text becomes one. Raises EpisodeFailure."""
    try:
        observation, reward, terminated, truncated, info = _five(returned)
        return _text("the observation", observation), _outcome(reward, terminated, truncated, info, seconds)
    except _Wrong as error:
        raise EpisodeFailure("returned", f"{environment}.step returned {error}") from None


def question(environment: str, returned: Any) -> Question:
    """The first observation that `reset` returned: a text, or chat messages. Raises EpisodeFailure."""
    try:
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise _Wrong(f"{_shown(returned)}, not (observation, info)")
        found = returned[0]
        if not isinstance(found, list):
            return _text("the observation", found)
        messages.checked(found)
        return [said | {"content": _text("a message", said["content"])} for said in found]
    except _Wrong as error:
        raise EpisodeFailure("returned", f"{environment}.reset returned {error}") from None
    except ValueError as error:
        raise EpisodeFailure("returned", f"{environment}.reset returned what cannot be asked: {error}") from None


def text(source: str, returned: Any) -> str:
    """A text that `source` wrote: a hint, a teacher's answer. Raises EpisodeFailure."""
    try:
        return _text("the text", returned)
    except _Wrong as error:
        raise EpisodeFailure("returned", f"{source} returned {error}") from None


def lessons(source: str, returned: Any) -> list[dict[str, str]]:
    """What episodes have shown: maps of texts `when_to_use` and `content`. Raises EpisodeFailure."""

    def lesson(one: Any) -> dict[str, str]:
        return {key: _text(f"a lesson's {key}", one[key]) for key in ("when_to_use", "content")}

    return _listed(source, returned, "lesson", "map with when_to_use and content", lesson)


def tool(name: str, returned: Any) -> str:
    """What the model reads of what a tool returned: a text as it is, anything else as JSON. Raises EpisodeFailure."""
    try:
        if isinstance(returned, np.generic):
            returned = returned.item()
        if not isinstance(returned, str):
            returned = json.dumps(returned, ensure_ascii=False)
        return _text("a text", returned)
    except _Wrong as error:
        raise EpisodeFailure("returned", f"tool {name} returned {error}") from None
    except Exception:  # of json, or of a value's own methods
        said = f"tool {name} returned {_shown(returned)}, which is neither a text nor JSON"
        raise EpisodeFailure("returned", said) from None


def dialogues(source: str, returned: Any) -> list[list[tuple[str, bool]]]:
    """Dialogues as (text, whether the model says it) pieces. Raises EpisodeFailure."""

    def dialogue(told: Any) -> list[tuple[str, bool]]:
        return [(_text("a piece", said), _boolean("a piece's owner", own)) for said, own in told]

    return _listed(source, returned, "dialogue", "list of pieces (text, own)", dialogue)


def _listed(source: str, returned: Any, kind: str, form: str, read: Callable[[Any], T]) -> list[T]:
    try:
        if not isinstance(returned, list | tuple):
            raise _Wrong(f"{_shown(returned)}, which is no list of {kind}s")
        return [read(one) for one in returned]
    except _Wrong as error:
        raise EpisodeFailure("returned", f"{source} returned {error}") from None
    except (TypeError, KeyError, ValueError):
        raise EpisodeFailure("returned", f"{source} returned a {kind} that is no {form}") from None


ABOUT = {"reward", "success", "answer", "feedback"}


def judged(source: str, returned: Any) -> Judged:
    """What a reward function or a judge returned: a number, or a map of named parts whose sum is the reward unless it
    holds `reward` itself, with `success`, `answer` and `feedback` where it knows them. A part that is None does not
    apply. Raises EpisodeFailure; so does None, of an answer that it does not judge."""
    try:
        if returned is None:
            raise _Wrong("None: it does not judge this answer")
        if not isinstance(returned, Mapping):
            if isinstance(returned, list) and len(returned) == 1:  # how a process of rewards shows what is neither
                raise _Wrong(f"{returned[0]}, which is neither a number nor a map")
            reward = _number("a reward", returned)
            return Judged(reward, reward >= 1)
        given = {name: value for name, value in returned.items() if value is not None}
        parts = _parts("a map", {name: value for name, value in given.items() if name not in ABOUT})
        if "reward" not in given and not parts:
            raise _Wrong("a map without a reward, and without parts to sum")
        reward = _number("reward", given.get("reward", math.fsum(parts.values())))
        success = _boolean("success", given["success"]) if "success" in given else reward >= 1
        answer = _canonical(given["answer"]) if "answer" in given else None
        said = _text("feedback", given["feedback"]) if "feedback" in given else None
        return Judged(reward, success, answer, said, parts)
    except _Wrong as error:
        raise EpisodeFailure("returned", f"{source} returned {error}") from None


def _parts(what: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise _Wrong(f"{what} {_shown(value)}, which is no mapping")
    if len(value) > MOST_PARTS:
        raise _Wrong(f"{what} with {len(value)} parts; {MOST_PARTS} is the most")
    if wrong := next((name for name in value if not isinstance(name, str) or not PART.fullmatch(name)), None):
        raise _Wrong(f"{what} with a part {_shown(wrong)}; name it in at most 40 letters, digits and underscores")
    return {name: _number(f"the part {name}", part) for name, part in value.items()}


def _five(returned: Any) -> tuple:
    wanted = "observation, reward, terminated, truncated, info"
    if not isinstance(returned, tuple | list):
        raise _Wrong(f"{_shown(returned)}, not the five values {wanted}")
    if len(returned) != 5:
        old = " (gym's old form)" if len(returned) == 4 else ""
        raise _Wrong(f"{len(returned)} values{old}, not five: {wanted}")
    return tuple(returned)


def _outcome(reward: Any, terminated: Any, truncated: Any, info: Any, seconds: float) -> Outcome:
    if not isinstance(info, Mapping):
        raise _Wrong(f"info {_shown(info)}, which is no mapping")
    success = _boolean("info['success']", info.get("success", False))
    answer = None if info.get("answer") is None else _canonical(info["answer"])
    score = None if info.get("score") is None else _number("info['score']", info["score"])
    return Outcome(
        _number("reward", reward),
        success,
        answer,
        _boolean("terminated", terminated),
        _boolean("truncated", truncated),
        seconds,
        _boolean("info['refused']", info.get("refused", False)),
        bool(answer) or success if "answer" in info else None,
        score,
        {} if info.get("parts") is None else _parts("info['parts']", info["parts"]),
        None if info.get("good") is None else _boolean("info['good']", info["good"]),
        None if info.get("state") is None else _text("info['state']", info["state"]),
    )


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{what} {_shown(value)}, which is no text")
    if len(value) > LONGEST_TEXT:
        raise _Wrong(f"{what} of {len(value):,} characters; {LONGEST_TEXT:,} is the most")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = f"{value[error.start]!r} at character {error.start}"
        raise _Wrong(f"{what} with {place}, half of a character: it cannot be written as UTF-8") from None
    return value if type(value) is str else str(value)


def _number(what: str, value: Any) -> float:
    """A finite number that float32 holds."""
    try:
        if isinstance(value, str | bytes) or np.ndim(value):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _Wrong(f"{what} {_shown(value)}, which is no number") from None
    if not math.isfinite(found):
        raise _Wrong(f"{what} {found}, which is not finite")
    if abs(found) > LARGEST:
        raise _Wrong(f"{what} {found:g}, which is too large: {LARGEST:.3g} is the most")
    return found


def _boolean(what: str, value: Any) -> bool:
    """True, False, 1, 0, or such of numpy and others."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, str | bytes) or found not in (0.0, 1.0):
        raise _Wrong(f"{what} {_shown(value)}, which is neither true nor false")
    return bool(found)


def _canonical(answer: Any) -> str:
    """An answer as a text, equal for equal answers."""
    if isinstance(answer, np.generic):
        answer = answer.item()
    if isinstance(answer, str):
        return _text("info['answer']", answer)
    if isinstance(answer, Number):
        return str(answer)
    try:
        return json.dumps(answer, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError):
        raise _Wrong(f"info['answer'] {_shown(answer)}; write it as a text") from None


def _shown(value: Any) -> str:
    try:
        said = repr(value)
    except Exception:
        said = "of which no text can be made"
    said = said if len(said) <= SHOWN else said[:SHOWN] + "..."
    return f"{said} ({type(value).__name__})"


# Task sources --------------------------------------------------------------------------------------------------------


class TaskSource(NamedTuple):
    """Where tasks come from, for errors: the setting that named it, itself in words, and what helps."""

    setting: str
    name: str
    cure: str = "Return maps that msgpack can carry, each with a text `id` of its own; see actors/environments/base.py"

    def wrong(self, problem: str) -> SettingError:
        return SettingError(self.setting, f"{self.name} {problem}", self.cure)


def tasks(source: TaskSource, found: Any) -> Sequence[dict]:
    """`found` itself. Raises SettingError, with the first task that is wrong: each must be a map of its own text `id`,
    which tells plays of one task from those of others, and must be such as can be sent to an actor."""
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise source.wrong(f"returned {_shown(found)}, which is no sequence")
    seen: dict[str, int] = {}
    for place, task in enumerate(found):
        number = seen.setdefault(_identity(source, place, task), place)
        if number != place:
            problem = f"has two tasks of the id {task['id']!r}: number {number} and number {place}"
            raise source.wrong(problem)
        try:
            msgpack.packb(task)
        except (TypeError, ValueError, OverflowError) as error:
            raise source.wrong(f"has a task {task['id']!r} that cannot be sent: {error}") from None
    return found


def _identity(source: TaskSource, place: int, task: Any) -> str:
    if not isinstance(task, dict):
        raise source.wrong(f"has {_shown(task)} as task number {place}, which is no map")
    if "id" not in task:
        raise source.wrong(f"has a task without an `id`: number {place}")
    identity = task["id"]
    if not isinstance(identity, str) or not identity:
        raise source.wrong(f"has the id {_shown(identity)} in task number {place}, which is no text")
    return identity
