"""The paths of one agent's episode: which tokens the messages of a request are.

An agent sends all messages with each request. Where they are those of an answer that this episode has given, that
answer, and then new ones, the tokens of that path are kept and only the new messages are spelled: no token that the
model has read or written is made twice, so a dialogue of any agent is a path of the turn graph. Anything else, such as
a history that was rewritten, a sub-agent or a summary, begins a new root; `Place.why` says what differed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from actors.engines import Completion
from actors.messages import TOOL, Message, Question, message
from actors.rendering import Renderer
from actors.tools import Offered, calls
from protocols.turns import TOKENS, Role

if TYPE_CHECKING:
    from actors.agents.requests import Asked

TEXT = "text"
"""The role of what is no chat message, but a text that the model goes on with."""
SHOWN = 40  # characters of a difference on either side


@dataclass(frozen=True, slots=True)
class Spoken:
    """One message as a client wrote it. Equal ones mean the same: `calls` are (name, arguments as sorted JSON) pairs;
    ids of calls are left out, since a client may number them anew."""

    role: str
    content: str
    calls: tuple[tuple[str, str], ...] = ()

    def differs(self, other: Spoken) -> str:
        """In words, how this message is not the other."""
        if self.role != other.role:
            return f"is the {self.role}'s, and was the {other.role}'s"
        if self.content != other.content:
            pairs = zip(self.content, other.content, strict=False)
            shorter = min(len(self.content), len(other.content))
            at = next((n for n, (one, two) in enumerate(pairs) if one != two), shorter)
            here, there = (text[at : at + SHOWN] for text in (self.content, other.content))
            return f"differs at character {at + 1}: {here!r}, and was {there!r}"
        return "has other tool calls"

    def told(self) -> Message:
        """As a chat template is given it: calls are written as a model writes them."""
        made = (calls.written(name, json.loads(arguments)) for name, arguments in self.calls)
        return message(self.role, "\n".join([*([self.content] if self.content else []), *made]))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answer to a request goes: int32 ids that its parent lacks (all, where that is None). `why` says why it
    did not continue a path, "" where it did or nothing was played before."""

    parent: Answer | None
    prompt: np.ndarray
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One response of the model: the request, what was sampled, and how the client was told of it."""

    asked: Asked
    place: Place
    completion: Completion
    said: Spoken
    text: str
    role: Role

    @property
    def messages(self) -> tuple[Spoken, ...]:
        return self.asked.messages

    @property
    def tools(self) -> str:
        return "" if self.asked.tools is None else self.asked.tools.text

    @property
    def whole(self) -> tuple[Spoken, ...]:
        """The messages, and the one that it is."""
        return (*self.messages, self.said)

    @property
    def root(self) -> Answer:
        """The first answer of its path."""
        return self if self.place.parent is None else self.place.parent.root

    @property
    def ids(self) -> np.ndarray:
        """int32, all that was read and written up to the end of this response."""
        parts, at = [], self
        while at is not None:
            parts += [at.completion.ids, at.place.prompt]
            at = at.place.parent
        return np.concatenate(parts[::-1])


class Paths:
    """Those of one episode, in the order in which answers came; with `most`, so many of the newest answers alone."""

    def __init__(self, renderer: Renderer, most: int | None = None):
        self._renderer, self._most = renderer, most
        self.answers: list[Answer] = []
        self._asked: dict[tuple[str, tuple[Spoken, ...]], Place] = {}
        self._ends: dict[tuple[str, tuple[Spoken, ...]], Answer] = {}

    def place(self, messages: Sequence[Spoken], tools: Offered | None) -> Place:
        """Where the answer to these messages goes; asked the same again, it is a sibling. Raises SettingError where the
        template cannot render them."""
        asked, offered = tuple(messages), "" if tools is None else tools.text
        if (known := self._asked.get((offered, asked))) is not None:
            return known
        new = len(list(takewhile(lambda said: said.role != "assistant", reversed(asked))))
        end = self._ends.get((offered, asked[: len(asked) - new]))
        heard = asked[len(asked) - new :]
        if end is None:
            why = self._differs(asked, offered)
        elif not (len(heard) == 1 and heard[0].role == "user") and any(said.role != TOOL for said in heard):
            came = ", ".join(said.role for said in heard)
            why = f"after the model's message come {came}: one of the user's continues it, or what tools answered"
        elif self._renderer.anew([said.told() for said in end.root.messages], _heard(heard), tools):
            why = "the model's chat template rewrites what it has shown before"
        else:
            ended = self._renderer.ended(end.completion.ids)
            return Place(end, self._renderer.next(_heard(heard), ended, tools))
        return Place(None, self._rendered(asked, tools), why)

    def text(self, text: Spoken, ids: Sequence[int] | None) -> Place:
        """Where the answer to a text goes that is no chat, or to `ids` that were given in its place: it continues the
        longest path that it begins with. What the path ended with, an end token or a stop sequence, is kept there,
        whether the client repeats it or not."""
        if (known := self._asked.get(("", (text,)))) is not None:
            return known
        if ids is not None:
            given = np.array(ids, TOKENS)
            paths = ((answer, answer.ids) for answer in self.answers)
            begun = [(len(read), answer) for answer, read in paths if np.array_equal(given[: len(read)], read)]
            size, end = max(begun, key=lambda one: one[0], default=(0, None))
            return Place(end, given[size:], self._apart(end))
        said = ((answer, self._begins(answer, text.content)) for answer in self.answers)
        begun = [(size, answer) for answer, size in said if size]
        size, end = max(begun, key=lambda one: one[0], default=(0, None))
        return Place(end, self._renderer.raw(text.content[size:], end is None), self._apart(end))

    def _begins(self, answer: Answer, text: str) -> int:
        """How many characters of the text are what that path has read and written; 0 where it begins with less."""
        asked = answer.messages[0]
        if asked.role != TEXT or not text.startswith(asked.content):
            return 0
        written = self._renderer.tokenizer.decode(answer.completion.ids, clean_up_tokenization_spaces=False)
        for told in (written, answer.text):
            if text.startswith(told, len(asked.content)):
                return len(asked.content) + len(told)
        return 0

    def _apart(self, end: Answer | None) -> str:
        return "its text begins with none of the paths" if end is None and self.answers else ""

    def ids(self, place: Place) -> np.ndarray:
        """int32, the whole prompt."""
        return place.prompt if place.parent is None else np.concatenate([place.parent.ids, place.prompt])

    def add(self, answer: Answer) -> None:
        """From now on requests may continue it: of two that say the same the newer one is continued."""
        self.answers.append(answer)
        self._asked[answer.tools, answer.messages] = answer.place
        self._ends[answer.tools, answer.whole] = answer
        if self._most is not None and len(self.answers) > self._most:
            self._forget(self.answers.pop(0))

    def _forget(self, answer: Answer) -> None:
        if self._asked.get((answer.tools, answer.messages)) is answer.place:
            del self._asked[answer.tools, answer.messages]
        if self._ends.get((answer.tools, answer.whole)) is answer:
            del self._ends[answer.tools, answer.whole]

    def _differs(self, asked: tuple[Spoken, ...], offered: str) -> str:
        """Why these messages continue none of the paths, by the one that is most like them; "" where there is none."""
        if not self.answers:
            return ""
        best = max(self.answers, key=lambda answer: (_alike(answer.whole, asked), answer.tools == offered))
        same = _alike(best.whole, asked)
        if same == len(asked):
            return f"it ends with message {same}, where the path goes on"
        if same < len(best.whole):
            return f"message {same + 1} {asked[same].differs(best.whole[same])}"
        if best.tools != offered:
            return "its tools are others"
        return f"message {same + 1} and later hold an answer that was not given here"

    def _rendered(self, messages: tuple[Spoken, ...], tools: Offered | None) -> np.ndarray:
        """int32 ids of messages that no path holds; what the model wrote is spelled as it wrote it."""
        written = {answer.said: answer.text for answer in self.answers}
        told = [
            message(said.role, written[said]) if said.role == "assistant" and said in written else said.told()
            for said in messages
        ]
        return self._renderer.first(told, tools=tools)


def _alike(one: Sequence[Spoken], other: Sequence[Spoken]) -> int:
    """How many messages both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _heard(new: Sequence[Spoken]) -> Question:
    if len(new) == 1 and new[0].role == "user":
        return new[0].content
    return [message(TOOL, said.content) for said in new]
