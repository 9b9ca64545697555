"""What a request to the endpoint asks for, and what it is answered: OpenAI's chat completions as data.

Parameters that would draw tokens in another way than the recipe are refused, or, where every agent sends them
(temperature, top_p), noted. Errors have OpenAI's form, so that its clients raise what they always raise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.agents.paths import Answer, Spoken
from actors.config import SamplingSettings
from actors.messages import LONGEST_TEXT, ROLES, TOOL
from actors.tools import Offered, calls, described
from protocols.turns import Role, Stop

MODEL = "redraft"
SAME_ROLE = {"developer": "system"}
MOST_SIBLINGS = 128
WITHOUT_EFFECT = frozenset(
    "user metadata store seed service_tier parallel_tool_calls prompt_cache_key prompt_cache_retention"
    " safety_identifier reasoning_effort verbosity".split()
)
"""Parameters that change nothing of what is sampled here."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "functions": ([],),
}
"""Parameters that could not be followed, and the values (beside null) that ask for nothing."""
ROLES_BY_NAME = {role.name.lower(): role for role in Role if role is not Role.ERROR}


class Refused(Exception):
    """A request that is answered with an error. `status` is HTTP's, the others are fields of OpenAI's error."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Asked:
    """`role` is that of the turns (None: the rollout's). `noted` are parameters that the recipe overrules."""

    messages: tuple[Spoken, ...]
    tools: Offered | None
    sampling: SamplingSettings
    role: Role | None
    model: str
    choices: int = 1
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    noted: Mapping[str, float] = field(default_factory=dict)


def read(body: Any, sampling: SamplingSettings) -> Asked:
    """What a body asks for, under the recipe's `sampling`. Raises Refused."""
    if not isinstance(body, Mapping):
        raise Refused("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None and key not in WITHOUT_EFFECT}
    for key, neutral in NEUTRAL.items():
        if (value := given.pop(key, neutral[0])) not in neutral:
            raise Refused(f"Unsupported value of {key}: {json.dumps(value)[:200]}", key, "unsupported_value")
    stream = given.pop("stream_options", {})
    model = given.pop("model", MODEL)
    longest = min(given.pop("max_tokens", 1 << 30), given.pop("max_completion_tokens", 1 << 30), key=_whole)
    asked = Asked(
        _messages(given.pop("messages", None)),
        None if body.get("tool_choice") == "none" else _tools(given.pop("tools", [])),
        sampling.model_copy(update={"max_tokens": min(_whole(longest), sampling.max_tokens)}),
        _role(model),
        str(model),
        _count(given.pop("n", 1)),
        given.pop("stream", False) is True,
        isinstance(stream, Mapping) and stream.get("include_usage") is True,
        given.pop("logprobs", False) is True,
        {
            key: given.pop(key)
            for key in ("temperature", "top_p")
            if key in given and given[key] != getattr(sampling, key)
        },
    )
    given = {key: value for key, value in given.items() if key not in ("temperature", "top_p", "tools")}
    if given:
        raise Refused(f"Unrecognized request argument: {next(iter(given))}", next(iter(given)), "unknown_parameter")
    return asked


def answer_of(text: str, tools: Offered | None) -> Spoken:
    """What a client is told that the model said: with tools, calls that can be read are calls."""
    found = calls.find(text) if tools is not None else []
    if not found or any(call.wrong for call in found):
        return Spoken("assistant", text.strip())
    before = text[: text.index(calls.BEGIN, text.rfind(calls.THOUGHT) + 1)]
    return Spoken("assistant", before.strip(), tuple((call.name, _sorted(call.arguments)) for call in found))


def completion(
    asked: Asked, answers: Sequence[Answer], names: Sequence[Sequence[str]], identity: str, prompt: int
) -> dict:
    """The body of a whole answer; `names` are the texts of each answer's tokens where log-probs are asked for, and
    `prompt` is how many tokens were read."""
    sampled = sum(len(answer.completion.ids) for answer in answers)
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", **_said(answer, identity)},
            "logprobs": _logprobs(answer, told) if asked.logprobs else None,
            "finish_reason": _reason(answer),
        }
        for place, (answer, told) in enumerate(zip(answers, names, strict=True))
    ]
    usage = {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
    return _head(asked, identity, "chat.completion") | {"choices": choices, "usage": usage}


def chunks(asked: Asked, whole: Mapping[str, Any]) -> list[dict]:
    """The same answer as the pieces of a stream."""
    head = _head(asked, whole["id"], "chat.completion.chunk")
    pieces = []
    for choice in whole["choices"]:
        said = dict(choice["message"])
        if "tool_calls" in said:
            said["tool_calls"] = [{"index": n, **call} for n, call in enumerate(said["tool_calls"])]
        place = {"index": choice["index"], "logprobs": choice["logprobs"]}
        pieces.append(head | {"choices": [place | {"delta": said, "finish_reason": None}]})
        pieces.append(
            head | {"choices": [place | {"logprobs": None, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        )
    return [*pieces, head | {"choices": [], "usage": whole["usage"]}] if asked.usage else pieces


def _head(asked: Asked, identity: str, kind: str) -> dict:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": asked.model}


def _said(answer: Answer, identity: str) -> dict:
    if not answer.said.calls:
        return {"content": answer.text, "refusal": None}
    made = [
        {"id": f"call_{identity[-8:]}_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(answer.said.calls)
    ]
    return {"content": answer.said.content or None, "refusal": None, "tool_calls": made}


def _reason(answer: Answer) -> str:
    if answer.completion.stop is Stop.LENGTH:
        return "length"
    return "tool_calls" if answer.said.calls else "stop"


def _logprobs(answer: Answer, names: Sequence[str]) -> dict:
    values = map(float, answer.completion.logprobs)
    content = [
        {"token": name, "logprob": value, "bytes": list(name.encode()), "top_logprobs": []}
        for name, value in zip(names, values, strict=True)
    ]
    return {"content": content, "refusal": None}


def _messages(given: Any) -> tuple[Spoken, ...]:
    if not isinstance(given, list) or not given:
        raise Refused("messages must be a list of at least one message", "messages")
    found = tuple(_spoken(place, said) for place, said in enumerate(given))
    if found[-1].role not in ("user", TOOL):
        raise Refused("the last message must be the user's or a tool's", f"messages.{len(found) - 1}")
    return found


def _spoken(place: int, said: Any) -> Spoken:
    param = f"messages.{place}"
    if not isinstance(said, Mapping):
        raise Refused("a message must be an object", param)
    role = said.get("role")
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in (*ROLES, TOOL):
        raise Refused(f"a message's role must be one of {', '.join((*ROLES, TOOL))}", f"{param}.role")
    if role == "system" and place:
        raise Refused("only the first message can be the system's", f"{param}.role")
    text = _text(said.get("content"), f"{param}.content")
    if role != "assistant":
        return Spoken(role, text)
    return Spoken(role, text.strip(), tuple(_call(call, param) for call in said.get("tool_calls") or ()))


def _text(content: Any, param: str) -> str:
    """A text, or the texts of parts."""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "\ud800" for part in content)
    if not isinstance(content, str | None):
        raise Refused("content must be a text, or a list of parts of type text", param)
    content = content or ""
    if len(content) > LONGEST_TEXT or not _encodes(content):
        raise Refused(f"content must be a text in UTF-8 of at most {LONGEST_TEXT} characters", param)
    return content


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _call(given: Any, param: str) -> tuple[str, str]:
    try:
        return str(given["function"]["name"]), _sorted(json.loads(given["function"].get("arguments") or "{}"))
    except (TypeError, LookupError, ValueError, AttributeError, RecursionError):
        raise Refused("a tool call must be {id, type, function: {name, arguments}}", f"{param}.tool_calls") from None


def _tools(given: Any) -> Offered | None:
    try:
        return Offered.of([described(f"tools.{place}", tool) for place, tool in enumerate(given)])
    except (TypeError, ValueError) as error:
        raise Refused(str(error), "tools") from None


def _role(model: Any) -> Role | None:
    """The role that a model's name says: redraft/reflection."""
    name = str(model).removeprefix(f"{MODEL}/")
    if model == MODEL or not str(model).startswith(f"{MODEL}/"):
        return None
    if name not in ROLES_BY_NAME:
        known = ", ".join(f"{MODEL}/{role}" for role in ROLES_BY_NAME)
        raise Refused(f"there is no model {model}; there are {MODEL}, {known}", "model", "model_not_found", 404)
    return ROLES_BY_NAME[name]


def _count(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST_SIBLINGS:
        raise Refused(f"n must be a whole number from 1 to {MOST_SIBLINGS}", "n")
    return given


def _whole(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise Refused("max_tokens must be a whole number from 1", "max_tokens")
    return given


def _sorted(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)
