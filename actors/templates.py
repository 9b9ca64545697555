"""What a chat template does to a dialogue, found by rendering probes.

    opening   <user>QUESTION<end><assistant>
    whole     <user>QUESTION<end><assistant> lead ANSWER tail <end><user> FOLLOWING <end><assistant>
                                                              | before  |           |   after      |

Where `whole` does not begin with `opening`, or an answer with thinking does not come back as it was, the template
rewrites what it has shown before, and prompts do not just grow. `lead` and `tail` are spaces that the template puts
around an answer (Mistral, Llama 2): a model writes its own. With tools, the same is found of what they answer:

    whole     <user>QUESTION<end><assistant> CALL <end> <tool> ONE </tool><tool> ANOTHER </tool> <end><assistant>
                                                       | before |   | between  |       |       after          |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from actors.messages import Message, message
from actors.tools import Offered, calls, schema
from protocols.errors import SettingError

QUESTION, ANSWER, FOLLOWING = "Redraft probes a question", "Redraft probes an answer", "Redraft probes what follows"
SYSTEM = "Redraft probes a system prompt"
THINKING = f"<think>\nRedraft probes thinking\n</think>\n\n{ANSWER}"
TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
"""What templates do to the spaces around a text."""


PROBE = "redraft_probes_a_tool"
CALLED = {"name": PROBE, "arguments": {"probe": 1}}
ANSWERS = ("Redraft probes one result", "Redraft probes another result", "Redraft probes a third result")
PROBED = Offered.of([schema(PROBE, "Redraft probes a tool", {"type": "object", "properties": {}})])
"""A tool, to see whether a template has a place for tools."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`rewrites` says why prompts do not just grow; where they do it is empty, and the pieces are those of the module.

    `end` is the id of the template's end token, `trim` and `trim_answer` what it does to the spaces of a message. With
    `headed` a model writes more messages than its answer, each with a header and that end token (gpt-oss: analysis,
    then final): the token does not end a response, and a response is no message that the template could render again.
    """

    rewrites: str
    end: int
    headed: bool = False
    lead: str = ""
    tail: str = ""
    before: str = ""
    after: str = ""
    trim: Callable[[str], str] = str
    trim_answer: Callable[[str], str] = str
    rendered: tuple[str, ...] = ()
    """All that was rendered to find this."""
    results: Results | None = None
    """How tools answer, where the dialogue has tools."""


@dataclass(frozen=True, slots=True)
class Results:
    """What stands around the answers of tools: `before` the first, `between` two, `after` the last; or why it
    `rewrites` what came before. `trim` is what the template does to the spaces of an answer. `markup` is all of the
    template's own.
    """

    rewrites: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    trim: Callable[[str], str] = str
    markup: str = ""


class Template:
    """The chat template of a transformers tokenizer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text up to the model's next answer. Raises SettingError where the template refuses the messages."""
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template raises what it likes, and fails on what it did not foresee
            said = " ".join(str(error).split()) or type(error).__name__
            problem = f"its chat template cannot render {_roles(messages)}: {said}"
            raise SettingError("model.template", problem, "Give another template") from None

    @cached_property
    def knows_system(self) -> bool:
        """Whether a system prompt reaches the model."""
        try:
            shown = self.render([message("system", SYSTEM), message("user", QUESTION)])
        except SettingError:
            return False
        return SYSTEM in shown and QUESTION in shown

    def shape(self, system: str | None, tools: Sequence[dict[str, Any]] = ()) -> Shape:
        """Of dialogues with that system prompt, and those tools. Raises SettingError where answers do not end with a
        control token, or the template does not know tools, or calls them in another form than actors/tools/calls.py."""
        start = [*([message("system", system)] if system else []), message("user", QUESTION)]
        opening = self.render(start, tools)

        def whole(answer: str, following: str) -> str:
            return self.render([*start, message("assistant", answer), message("user", following)], tools)

        shape = self._shape(opening, whole)
        return replace(shape, results=self._results(start, opening, tools)) if tools else shape

    def _shape(self, opening: str, whole: Callable[[str, str], str]) -> Shape:

        thought, plain = whole(THINKING, FOLLOWING), whole(ANSWER, FOLLOWING)
        start_of_answer = plain.find(ANSWER)
        if start_of_answer < 0:
            raise _unusable("leaves the model's answers out")
        tail, end, rest = self._end(plain[start_of_answer + len(ANSWER) :])
        grows = all(_follows(opening, text, answer) for text, answer in ((thought, THINKING), (plain, ANSWER)))
        if not grows:
            headed = plain.startswith(opening) and bool(plain[len(opening) : start_of_answer].strip())
            why = "puts a header before answers" if headed else "rewrites earlier messages (strips thinking, say)"
            return Shape(why, end, headed, rendered=(opening, plain))
        before, found, after = rest.partition(FOLLOWING)
        lead, head = plain[len(opening) : start_of_answer], plain[: len(plain) - len(after) - len(FOLLOWING)]
        trim = _trim(FOLLOWING, lambda text: whole(ANSWER, text), head, after) if found else None
        if trim is None:
            return Shape("alters the user's text", end, rendered=(opening, plain))
        trim_answer = _trim(ANSWER, lambda text: whole(text, FOLLOWING), opening + lead, tail + rest) or str
        return Shape("", end, False, lead, tail, before, after, trim, trim_answer, (opening, plain))

    def _results(self, start: Sequence[Message], opening: str, tools: Sequence[dict[str, Any]]) -> Results:
        """How tools answer. Raises SettingError where tools are not shown, or their calls have another form."""
        self._check_tools(start, opening, tools)

        def whole(answer: str, *answers: str) -> str:
            told = [*start, message("assistant", answer), *(message("tool", text) for text in answers)]
            return self.render(told, tools)

        call = calls.written(PROBE, {"probe": 1})
        plain = whole(call, *ANSWERS)
        shown = (plain, call), (whole(THINKING, *ANSWERS), THINKING)
        if not all(_follows(opening, text, said) for text, said in shown):
            return Results("rewrites earlier messages (strips thinking, say) once a tool has answered")
        _, _, rest = self._end(plain.partition(call)[2])
        (before, between, last, after), head = _around(rest, ANSWERS), plain[: len(plain) - len(rest)]
        one = whole(call, ANSWERS[0])
        trim = _trim(ANSWERS[0], lambda text: whole(call, text), head + before, after)
        if between != last or one != head + before + ANSWERS[0] + after or trim is None:
            return Results("alters what tools answer")
        return Results("", before, between, after, trim, calls.BEGIN + before + between + after + calls.END)

    def _check_tools(self, start: Sequence[Message], opening: str, tools: Sequence[dict[str, Any]]) -> None:
        cure = "Use a model whose template knows tools, or give it another: model.template.path"
        names = [tool["function"]["name"] for tool in tools]
        bare = self.render(start)
        if any(opening.count(name) <= bare.count(name) for name in names):
            raise SettingError("environment.tools", "the model's chat template does not show tools", cure)
        called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALLED}]}
        said = self.render([*start, called, message("tool", ANSWERS[0])], tools).removeprefix(opening)
        if [(call.name, call.arguments) for call in calls.find(said)] != [(PROBE, CALLED["arguments"])]:
            problem = f"the model's chat template does not write calls as {calls.BEGIN}{{...}}{calls.END} (hermes)"
            raise SettingError("environment.tools", problem, cure.replace("knows tools", "does"))

    def _end(self, rest: str) -> tuple[str, int, str]:
        """What follows an answer, as (spaces, id of the control token that ends it, all from that token on)."""
        added = self._tokenizer.added_tokens_decoder
        for text in (rest, rest.lstrip()):
            ids = self._tokenizer.encode(text, add_special_tokens=False) if text else []
            if ids and ids[0] in added:
                return rest[: len(rest) - len(text)], ids[0], text
        raise _unusable("does not end an answer with a special token", "Use one that ends answers with, say, the eos")


def _follows(opening: str, text: str, answer: str) -> bool:
    """Whether the answer stands where the model would have begun it."""
    lead, found, _ = text[len(opening) :].partition(answer)
    return text.startswith(opening) and bool(found) and not lead.strip()


def _trim(text: str, render: Callable[[str], str], head: str, rest: str) -> Callable[[str], str] | None:
    """What the template does to spaces around a text that stands between `head` and `rest`; None for anything else."""
    padded = f" \n{text}\n "
    rendered = render(padded)
    return next((trim for trim in TRIMS if rendered == head + trim(padded) + rest), None)


def _around(text: str, parts: Sequence[str]) -> list[str]:
    """What stands before, between and after the parts; from one that is not there on, nothing."""
    found = []
    for part in parts:
        before, _, text = text.partition(part)
        found.append(before)
    return [*found, text]


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(said["role"] for said in messages)


def _unusable(what: str, cure: str = "Use one that keeps them") -> SettingError:
    return SettingError("model.template", f"the model's chat template {what}", cure)
