"""What a request to the endpoint is answered: OpenAI's chat completions and completions as data, whole or in pieces."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from actors.agents.paths import Answer, Spoken
from actors.agents.requests import Asked, sorted_json
from actors.engines import Completion
from actors.rendering import Renderer
from actors.tools import Offered, calls
from protocols.turns import Stop


def said(text: str, tools: Offered | None) -> Spoken:
    """What a client is told that the model said: with tools, calls that can be read are calls."""
    found = calls.find(text) if tools is not None else []
    if not found or any(call.wrong for call in found):
        return Spoken("assistant", text.strip())
    before = text[: text.index(calls.BEGIN, text.rfind(calls.THOUGHT) + 1)]
    return Spoken("assistant", before.strip(), tuple((call.name, sorted_json(call.arguments)) for call in found))


def stopped(completion: Completion, stops: Sequence[str], renderer: Renderer) -> tuple[Completion, str]:
    """The response up to the token that completes the first of the texts, and what it says before that text."""
    text = renderer.text(completion.ids)
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return completion, text
    place, stop = min(found, key=lambda one: (one[0], -len(one[1])))
    ids, end = completion.ids, place + len(stop)
    size = bisect_left(range(len(ids)), True, key=lambda n: text[:end] in renderer.text(ids[:n]))
    kept = replace(
        completion,
        ids=ids[:size],
        logprobs=completion.logprobs[:size],
        versions=tuple(span for span in completion.versions if span[0] < size),
        stop=Stop.END,
    )
    return kept, text[:place]


def whole(asked: Asked, made: Sequence[Answer], names: Sequence[Sequence[str]], identity: str, prompt: int) -> dict:
    """The body of a whole answer; `names` are the texts of each answer's tokens where log-probs are asked for, and
    `prompt` is how many tokens were read."""
    sampled = sum(len(answer.completion.ids) for answer in made)
    choices = [
        {
            "index": place,
            **(
                {"text": answer.text}
                if asked.is_text
                else {"message": {"role": "assistant", **_said(answer, identity)}}
            ),
            "logprobs": _logprobs(answer, told, asked.is_text) if asked.logprobs else None,
            "finish_reason": _reason(answer),
        }
        for place, (answer, told) in enumerate(zip(made, names, strict=True))
    ]
    usage = {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
    kind = "text_completion" if asked.is_text else "chat.completion"
    return _head(asked, identity, kind) | {"choices": choices, "usage": usage}


def pieces(asked: Asked, answer: Mapping) -> list[dict]:
    """The same answer as the pieces of a stream."""
    head = _head(asked, answer["id"], "text_completion" if asked.is_text else "chat.completion.chunk")
    found = []
    for choice in answer["choices"]:
        if asked.is_text:
            found.append(head | {"choices": [choice]})
            continue
        told = dict(choice["message"])
        if "tool_calls" in told:
            told["tool_calls"] = [{"index": n, **call} for n, call in enumerate(told["tool_calls"])]
        place = {"index": choice["index"], "logprobs": choice["logprobs"]}
        found.append(head | {"choices": [place | {"delta": told, "finish_reason": None}]})
        found.append(
            head | {"choices": [place | {"logprobs": None, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        )
    return [*found, head | {"choices": [], "usage": answer["usage"]}] if asked.usage else found


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


def _logprobs(answer: Answer, names: Sequence[str], text: bool) -> dict:
    values = list(map(float, answer.completion.logprobs))
    if text:
        begins = [sum(map(len, names[:place])) for place in range(len(names))]
        return {"tokens": list(names), "token_logprobs": values, "top_logprobs": None, "text_offset": begins}
    content = [
        {"token": name, "logprob": value, "bytes": list(name.encode()), "top_logprobs": []}
        for name, value in zip(names, values, strict=True)
    ]
    return {"content": content, "refusal": None}
