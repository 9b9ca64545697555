"""What a request to the endpoint asks for: OpenAI's chat completions and completions as data.

Parameters that would draw tokens in another way than the recipe are refused, or, where most agents send them
(temperature, top_p, tool_choice), noted; temperature and top_p are followed where `sampling.agent` says so. Errors have
OpenAI's form, so that its clients raise what they always raise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from actors.agents.paths import TEXT, Spoken
from actors.config import LEAST_TEMPERATURE, SamplingSettings
from actors.messages import LONGEST_TEXT, ROLES, TOOL
from actors.tools import Offered, described
from protocols.turns import Role

MODEL = "redraft"
SAME_ROLE = {"developer": "system"}
MOST_SIBLINGS = 128
MOST_STOPS = 16
LONGEST_NAME = 200  # characters of a model's name
MOST = 1e6  # of a parameter that is a number
WITHOUT_EFFECT = frozenset(
    "user metadata store seed service_tier parallel_tool_calls prompt_cache_key prompt_cache_retention"
    " safety_identifier reasoning_effort verbosity".split()
)
"""Parameters that change nothing of what is sampled here."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
"""Parameters that could not be followed, and the values (beside null) that ask for nothing."""
SAMPLING = ("temperature", "top_p")
ROLES_BY_NAME = {role.name.lower(): role for role in Role if role not in (Role.ERROR, Role.VERIFICATION)}


class Refused(Exception):
    """A request that is answered with an error. `status` is HTTP's, the others are fields of OpenAI's error."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Terms:
    """What is sampled with, and how models may be called beside Redraft's own roles. `free`: a request may choose how
    it is sampled, since nothing is trained on it; else it may as far as `sampling.agent` says."""

    sampling: SamplingSettings
    roles: tuple[str, ...] = ()
    free: bool = False

    @property
    def followed(self) -> tuple[str, ...]:
        """Parameters that a request that is trained may set."""
        agent = self.sampling.agent
        return (agent,) if isinstance(agent, str) else SAMPLING if agent else ()

    @property
    def models(self) -> list[str]:
        return [MODEL, *(f"{MODEL}/{role}" for role in (*ROLES_BY_NAME, *self.roles))]


@dataclass(frozen=True, slots=True)
class Asked:
    """`role` is that of the turns (None: the rollout's), `own_role` what the program calls it. `noted` are parameters
    that the recipe overrules, `own` those that are followed in its place. `ids` are a prompt that came as token ids."""

    messages: tuple[Spoken, ...]
    tools: Offered | None
    sampling: SamplingSettings
    role: Role | None
    own_role: str
    model: str
    stops: tuple[str, ...] = ()
    choices: int = 1
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    noted: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    ids: tuple[int, ...] | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is a text that goes on, and no chat."""
        return self.messages[0].role == TEXT


def read(body: Any, terms: Terms, text: bool = False) -> Asked:
    """What a body asks for: chat completions, or with `text` completions. Raises Refused."""
    if not isinstance(body, Mapping):
        raise Refused("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None and key not in WITHOUT_EFFECT}
    for key, neutral in NEUTRAL.items():
        if (value := given.pop(key, neutral[0])) not in neutral:
            raise Refused(f"Unsupported value of {key}: {json.dumps(value)[:200]}", key, "unsupported_value")
    stream = given.pop("stream_options", {})
    model = _model(given.pop("model", MODEL))
    role, own = _role(model, terms.roles)
    tools, forced = (None, {}) if text else _tools(given)
    messages, ids = _prompt(given.pop("prompt", None)) if text else (_messages(given.pop("messages", None)), None)
    sampling, own_sampling, noted = _sampling(given, terms)
    asked = Asked(
        messages,
        tools,
        sampling,
        role,
        own,
        model,
        _stops(given.pop("stop", [])),
        _count(given.pop("n", 1)),
        given.pop("stream", False) is True,
        isinstance(stream, Mapping) and stream.get("include_usage") is True,
        _logprobs(given.pop("logprobs", False), text),
        {**noted, **forced},
        own_sampling,
        ids,
    )
    if given:
        raise Refused(f"Unrecognized request argument: {next(iter(given))}", next(iter(given)), "unknown_parameter")
    return asked


def _sampling(given: dict[str, Any], terms: Terms) -> tuple[SamplingSettings, dict[str, float], dict[str, Any]]:
    """How to sample, what of it is the request's own, and what the recipe overrules of what was asked for; takes it
    from `given`."""
    lengths = [_whole(given.pop(key), key) for key in ("max_tokens", "max_completion_tokens") if key in given]
    wanted = {key: _number(given.pop(key), key) for key in SAMPLING if key in given}
    if terms.free:
        return _valid(terms.sampling, wanted | ({"max_tokens": min(lengths)} if lengths else {})), {}, {}
    longest = {"max_tokens": min([*lengths, terms.sampling.max_tokens])}
    others = {key: value for key, value in wanted.items() if value != getattr(terms.sampling, key)}
    own = {key: float(value) for key, value in others.items() if key in terms.followed}
    if own.get("temperature", 1.0) < LEAST_TEMPERATURE:
        cure = f"ask for {LEAST_TEMPERATURE} or more, or leave out the recipe's sampling.agent, so that its own holds"
        raise Refused(f"temperature {own['temperature']:g} cannot be learned from; {cure}", "temperature")
    return _valid(terms.sampling, own | longest), own, {key: others[key] for key in others.keys() - own.keys()}


def _valid(sampling: SamplingSettings, changes: Mapping[str, Any]) -> SamplingSettings:
    try:
        return SamplingSettings.model_validate({**sampling.model_dump(), **changes})
    except ValidationError as error:
        [key, *_] = error.errors()[0]["loc"]
        raise Refused(f"{key}: {error.errors()[0]['msg']}", str(key)) from None


def _prompt(given: Any) -> tuple[tuple[Spoken, ...], tuple[int, ...] | None]:
    """One text, or one list of token ids."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        [given] = given
    if isinstance(given, list) and given and all(type(one) is int and 0 <= one < 1 << 31 for one in given):
        return (Spoken(TEXT, " ".join(map(str, given))),), tuple(given)
    if not isinstance(given, str) or not given:
        raise Refused("prompt must be one text, or one list of token ids", "prompt")
    return (Spoken(TEXT, _text(given, "prompt")),), None


def _messages(given: Any) -> tuple[Spoken, ...]:
    """Those of the system at the head are one: templates know one."""
    if not isinstance(given, list) or not given:
        raise Refused("messages must be a list of at least one message", "messages")
    found = [_spoken(place, said) for place, said in enumerate(given)]
    heads = next((place for place, said in enumerate(found) if said.role != "system"), len(found))
    later = next((place for place, said in enumerate(found) if said.role == "system" and place > heads), None)
    if later is not None:
        raise Refused("only the first messages can be the system's", f"messages.{later}.role")
    if found[-1].role not in ("user", TOOL):
        raise Refused("the last message must be the user's or a tool's", f"messages.{len(found) - 1}")
    head = [Spoken("system", "\n\n".join(said.content for said in found[:heads]))] if heads else []
    return (*head, *found[heads:])


def _spoken(place: int, said: Any) -> Spoken:
    param = f"messages.{place}"
    if not isinstance(said, Mapping):
        raise Refused("a message must be an object", param)
    role = said.get("role")
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in (*ROLES, TOOL):
        raise Refused(f"a message's role must be one of {', '.join((*ROLES, TOOL))}", f"{param}.role")
    text = _text(said.get("content"), f"{param}.content")
    if role != "assistant":
        return Spoken(role, text)
    called = said.get("tool_calls") or ()
    if not isinstance(called, list | tuple):
        raise Refused("tool_calls must be a list", f"{param}.tool_calls")
    return Spoken(role, text.strip(), tuple(_call(call, param) for call in called))


def _text(content: Any, param: str) -> str:
    """A text, or the texts of parts."""
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise Refused("content must be a text, or a list of parts of type text", param)
        content = "".join(part["text"] for part in content)
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
        arguments = json.loads(given["function"].get("arguments") or "{}")
        return str(given["function"]["name"]), sorted_json(arguments)
    except (TypeError, LookupError, ValueError, AttributeError, RecursionError):
        raise Refused("a tool call must be {id, type, function: {name, arguments}}", f"{param}.tool_calls") from None


def _tools(given: dict[str, Any]) -> tuple[Offered | None, dict[str, Any]]:
    """What is offered, and what was asked for beyond that: a model is not made to call a tool."""
    tools, choice = given.pop("tools", []), given.pop("tool_choice", "auto")
    forces = choice == "required" or isinstance(choice, Mapping)
    if not forces and choice not in ("auto", "none"):
        raise Refused(f"Unsupported value of tool_choice: {json.dumps(choice)[:200]}", "tool_choice")
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise Refused("tools must be a list", "tools")
    try:
        offered = Offered.of([described(f"tools.{place}", tool) for place, tool in enumerate(tools)])
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(str(error), "tools") from None
    return None if choice == "none" else offered, {"tool_choice": "required"} if forces else {}


def _model(given: Any) -> str:
    if not isinstance(given, str) or len(given) > LONGEST_NAME or not _encodes(given):
        raise Refused(f"model must be a text of at most {LONGEST_NAME} characters", "model")
    return given


def _role(model: str, own: Sequence[str]) -> tuple[Role | None, str]:
    """The role that a model's name says, as redraft/reflection, and the program's own name for it."""
    name = model.removeprefix(f"{MODEL}/")
    if name == model:
        return None, ""
    if name in own:
        return None, name
    if name not in ROLES_BY_NAME:
        known = ", ".join(f"{MODEL}/{role}" for role in (*ROLES_BY_NAME, *own))
        cure = "the recipe's rollout.roles names others"
        problem = f"there is no model {model}; there are {MODEL}, {known}, and {cure}"
        raise Refused(problem, "model", "model_not_found", 404)
    return ROLES_BY_NAME[name], ""


def _stops(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(one, str) and one for one in texts):
        raise Refused(f"stop must be a text, or a list of at most {MOST_STOPS} texts", "stop")
    return tuple(texts)


def _logprobs(given: Any, text: bool) -> bool:
    """Whether the sampled tokens' own are asked for: nothing is known of other tokens."""
    if text and type(given) is int and given > 0:
        raise Refused("logprobs can be 0, which gives those of the sampled tokens", "logprobs", "unsupported_value")
    if not isinstance(given, bool | int):
        raise Refused("logprobs must be a boolean, or for completions 0", "logprobs")
    return given is True or (text and given is not False)


def _count(given: Any) -> int:
    if type(given) is not int or not 1 <= given <= MOST_SIBLINGS:
        raise Refused(f"n must be a whole number from 1 to {MOST_SIBLINGS}", "n")
    return given


def _number(given: Any, key: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < MOST:
        raise Refused(f"{key} must be a number", key)
    return given


def _whole(given: Any, key: str) -> int:
    if type(given) is not int or given < 1:
        raise Refused(f"{key} must be a whole number from 1", key)
    return given


def sorted_json(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)
