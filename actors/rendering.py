"""Turns messages into token ids, such that nothing that a model has read or written is ever tokenised again.

The first prompt goes through the tokenizer's chat template. Each later prompt is only what stands between the last
token of the model's answer and the first of its next one:

    model's answer  | <end>  "\\n<user>"  environment's message  "<end>\\n<assistant>"  |  model's next answer
                       ^ left out where the answer already ended

A model may end an answer with another token than the template's: its generation config lists some, and the tokenizer
has an eos. Such a token stays as it was sampled, and stands in the place of the template's: what follows is what the
template puts after its own. An answer that was cut gets the template's.

Where the pieces lie, and what the template does to a message, is found once (actors/templates.py). Where it rewrites
what it has shown before (it strips thinking from earlier answers, say), tokens cannot just be appended: each prompt
then is a new root, the whole dialogue rendered anew, if the recipe allows that. A tokenizer without a template is plain
concatenation, after the token that it begins a text with, if any.

Tools are shown where the template shows them, at the head of a dialogue; what they answer is appended as their role, in
the same way as what the user says.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actors.messages import Message, Question, are_results, flat, has_system, listed, message
from actors.spelling import Speller, frozen
from actors.templates import SYSTEM, Results, Shape, Template
from actors.tools import Offered
from protocols.errors import SettingError

log = logging.getLogger("redraft.rendering")
OnRewrite = Literal["refuse", "new_root"]
SHORT, KEPT = 200, 4096  # what tasks and environments say again and again: up to so many characters, so many such texts


def load(model: Path | str, on_rewrite: OnRewrite = "refuse", system: str | None = None) -> Renderer:
    """The renderer of the tokenizer in a model's folder. Raises SettingError in one line where there is none."""
    return Renderer(tokenizer_of(Path(model)), on_rewrite, system, listed_ends(Path(model)))


def tokenizer_of(model: Path):
    """The transformers tokenizer in a model's folder. Raises SettingError in one line where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # what some classes are without files
            raise ValueError("there is nothing in its vocabulary but control tokens")
    except Exception as error:  # every kind of file that is missing or broken raises its own
        log.info("loading the tokenizer says: %s", error)
        cure = "Copy its tokenizer's files there: tokenizer.json and tokenizer_config.json"
        raise SettingError("model.path", f"{model} has no tokenizer that can be loaded", cure) from error
    return tokenizer


def listed_ends(model: Path) -> list[int]:
    """`eos_token_id` of the model's generation config, as a list; where there is no such file, of its config."""
    for name in ("generation_config.json", "config.json"):
        if (model / name).exists():
            found = json.loads((model / name).read_text()).get("eos_token_id")
            return [found] if isinstance(found, int) else [int(n) for n in found or ()]
    return []


class Renderer:
    """Renders for one transformers tokenizer. Raises SettingError where that cannot be done faithfully.

    `end` is the id with which the template ends an answer (it need not be the tokenizer's eos), `ends` are all that end
    a response, `end` first. `system` is the system prompt of every dialogue whose question brings none.
    """

    def __init__(
        self,
        tokenizer,
        on_rewrite: OnRewrite = "refuse",
        system: str | None = None,
        ends: Iterable[int] = (),
    ):
        self.tokenizer, self.on_rewrite, self._system = tokenizer, on_rewrite, system
        self._template = Template(tokenizer) if tokenizer.chat_template else None
        self._shapes: dict[tuple[str | None, Offered | None], Shape] = {}
        self._spellers: dict[str, Speller] = {}
        known = [*([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *ends]
        if self._template is not None:
            self._check_system("rollout.system", system is not None)
            shape = self._shape(system)
            known = known if shape.headed and known else [shape.end, *known]
        elif system is not None:
            cure = "Leave it out, or give one: model.template.path"
            raise SettingError("rollout.system", "the model's tokenizer has no chat template", cure)
        if not known:
            problem = "its tokenizer has no eos_token, so nothing can end an answer"
            raise SettingError("model.path", problem, "Save a copy with `tokenizer.eos_token` set")
        self.ends: tuple[int, ...] = tuple(dict.fromkeys(known))
        self.end: int = known[0]
        self._speller = Speller(tokenizer, [self.end])
        self._begin = [] if self._template else _begins_with(tokenizer)
        self._first_again = lru_cache(KEPT)(self._first)
        self._next_again = lru_cache(KEPT)(self._next)

    @property
    def rewrites(self) -> str:
        """Why prompts do not just grow; empty where they do."""
        return self._shape(self._system).rewrites if self._template else ""

    @property
    def may_rewrite(self) -> bool:
        """Whether they may not grow, be it only where a question brings a system prompt."""
        if self._template is None:
            return False
        return bool(self.rewrites or (self._template.knows_system and self._shape(SYSTEM).rewrites))

    @cached_property
    def written(self) -> set[int]:
        """Ids that the renderer writes whatever the task says: the template's, and the end of an answer."""
        shown = self._shape(self._system).rendered if self._template else ()
        return {self.end, *self._begin, *(n for text in shown for n in self._speller.whole(text))}

    def anew(self, question: Question, heard: Question = "", tools: Offered | None = None) -> bool:
        """Whether the prompt with `heard`, in a dialogue that begins with `question` and has these tools, is a new
        root, for `first` with its history; else `next` continues it. Raises SettingError where neither is allowed."""
        if self._template is None:
            return False
        system = listed(question)[0]["content"] if has_system(question) else self._system
        shape = self._shape(system, tools)
        rewrites = _results(shape).rewrites if are_results(heard) else shape.rewrites
        if rewrites and (self.on_rewrite == "refuse" or shape.headed):
            raise _rewriting(shape, rewrites)
        return bool(rewrites)

    def first(
        self, question: Question, history: Sequence[tuple[Question, str]] = (), tools: Offered | None = None
    ) -> np.ndarray:
        """int32 ids of a whole prompt; `history` holds earlier (question, answer) pairs of the dialogue. Raises
        SettingError where there are tools, and the template does not know them."""
        if isinstance(question, str) and not history and len(question) <= SHORT:
            return self._first_again(question, (), tools)
        return self._first(question, history, tools)

    def messages(self, question: Question, history: Sequence[tuple[Question, str]] = ()) -> list[Message]:
        """The dialogue as chat messages, with the system prompt."""
        told = flat(history, question)
        return told if self._system is None or has_system(told) else [message("system", self._system), *told]

    def next(self, heard: Question, ended: bool, tools: Offered | None = None) -> np.ndarray:
        """int32 ids from the model's last id to its next answer, of what the user or tools said (messages.results).
        `ended`: that last id ends a response."""
        if isinstance(heard, str):
            return self._next_again(heard, ended, tools) if len(heard) <= SHORT else self._next(heard, ended, tools)
        return self._answered(heard, ended, tools)

    def answer(self, text: str) -> np.ndarray:
        """int32 ids of a message that the model did not write itself, with its end token."""
        said = text
        if self._template is not None:
            shape = self._shape(self._system)
            said = shape.lead + shape.trim_answer(text) + shape.tail
        return frozen([*self._words(said), self.end])

    def raw(self, text: str, begins: bool) -> np.ndarray:
        """int32 ids of a text as it stands, without a template: what it spells of control tokens are such. Where it
        `begins`, after the token that the tokenizer begins a text with."""
        words = self.tokenizer.encode(text, add_special_tokens=False)
        return frozen([*(_begins_with(self.tokenizer) if begins else []), *words])

    def ended(self, ids: np.ndarray) -> bool:
        """Whether a response ended of itself, and was not cut."""
        return len(ids) > 0 and int(ids[-1]) in self.ends

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """What a response says, without the token that ends it."""
        ids = list(map(int, ids))
        if ids and ids[-1] in self.ends:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _first(
        self, question: Question, history: Sequence[tuple[Question, str]] = (), tools: Offered | None = None
    ) -> np.ndarray:
        messages = self.messages(question, history)
        if self._template is None:
            if tools is not None:
                raise _no_place_for_tools()
            return frozen([*self._begin, *(n for said in messages for n in self._said(said))])
        self._check_system("environment.name", has_system(messages))
        speller, schemas = self._speller_of(tools), () if tools is None else tools.schemas
        texts = [*(said["content"] for said in messages), *([] if tools is None else [tools.text])]
        if any(map(speller.spells_control, texts)):
            masked = [self._masked(said, speller) for said in messages]
            ids = speller.unmasked(self._template.render(masked, [_masked_in(one, speller) for one in schemas]))
        else:
            ids = speller.whole(self._template.render(messages, schemas))
        speller.check(ids, texts)
        return frozen(ids)

    def _next(self, text: str, ended: bool, tools: Offered | None = None) -> np.ndarray:
        if self._template is None:
            return frozen([*([] if ended else [self.end]), *self._words(text)])
        shape = self._shape(self._system, tools)
        if shape.rewrites:
            raise _rewriting(shape, shape.rewrites)
        ids = _joined(self._speller_of(tools), [shape.before, shape.after], [shape.trim(text)])
        return frozen(ids[1:] if ended else ids)

    def _answered(self, heard: Sequence[Message], ended: bool, tools: Offered | None) -> np.ndarray:
        if self._template is None:
            raise _no_place_for_tools()
        shape = self._shape(self._system, tools)
        results = _results(shape)
        if results.rewrites:
            raise _rewriting(shape, results.rewrites)
        texts = [results.trim(said["content"]) for said in heard]
        around = [results.before, *[results.between] * (len(texts) - 1), results.after]
        ids = _joined(self._speller_of(tools), around, texts)
        return frozen(ids[1:] if ended else ids)

    def _speller_of(self, tools: Offered | None) -> Speller:
        """With tools, what the template sets around calls and answers is control, too: no result may spell it."""
        if tools is None:
            return self._speller
        markup = _results(self._shape(self._system, tools)).markup
        if markup not in self._spellers:
            added = self.tokenizer.added_tokens_decoder
            own = [n for n in self._speller.whole(markup) if n in added]
            self._spellers[markup] = Speller(self.tokenizer, [self.end, *own])
        return self._spellers[markup]

    def _masked(self, said: Message, speller: Speller) -> Message:
        """The message without control tokens; an answer keeps those that only a model writes, such as thinking's."""
        only = self.written.union(self.ends) if said["role"] == "assistant" else None
        return message(said["role"], speller.mask(said["content"], only))

    def _said(self, said: Message) -> list[int]:
        """Ids of one message where there is no template."""
        if said["role"] == "system":
            problem = "its question begins with a system message, and the model's tokenizer has no chat template"
            raise SettingError("environment.name", problem, "Give the model one: model.template.path")
        if said["role"] == "user":
            return self._words(said["content"])
        return [*self._words(said["content"].removesuffix(self.tokenizer.decode([self.end]))), self.end]

    def _words(self, text: str) -> list[int]:
        """Ids of a text that stands by itself."""
        spell = self._speller.plain if self._speller.spells_control(text) else self._speller.whole
        ids = spell(text)
        self._speller.check(ids, [text])
        return ids

    def _shape(self, system: str | None, tools: Offered | None = None) -> Shape:
        """What the template does where that is the system prompt, and those the tools: some rewrite only then."""
        if self._template is None:
            raise ValueError("the tokenizer has no chat template")
        key = system, tools
        if key not in self._shapes:
            if len(self._shapes) >= KEPT:
                self._shapes.clear()
            self._shapes[key] = self._template.shape(system, () if tools is None else tools.schemas)
        return self._shapes[key]

    def _check_system(self, setting: str, wanted: bool) -> None:
        if wanted and (self._template is None or not self._template.knows_system):
            raise SettingError(setting, "the model's chat template has no system role", "Write it into the question")


def _rewriting(shape: Shape, rewrites: str) -> SettingError:
    """A second prompt was asked for where prompts do not just grow, and are not to be, or cannot be, rendered anew."""
    cure = "Set it to new_root, so that each prompt is the whole dialogue, or use a template that keeps what was shown"
    if shape.headed:
        cure = "Play it in one turn: rollout attempt without a plan, and evaluation.turns: 1"
    problem = f"the model's chat template {rewrites}, so prompts do not just grow"
    return SettingError("model.on_rewrite", problem, cure)


def _results(shape: Shape) -> Results:
    if shape.results is None:
        raise SettingError("tools", "a tool has answered in a dialogue without tools", "Name them in each request")
    return shape.results


def _no_place_for_tools() -> SettingError:
    problem = "the model's tokenizer has no chat template, so a model cannot be told of tools"
    return SettingError("environment.tools", problem, "Give it one: model.template.path")


def _joined(speller: Speller, around: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Ids of texts with a template's own words `around` them, one more than there are texts."""
    spelled = any(map(speller.spells_control, texts))
    shown = [speller.mask(text) if spelled else text for text in texts]
    whole = "".join(part for pair in zip(around, [*shown, ""], strict=True) for part in pair)
    ids = speller.unmasked(whole) if spelled else speller.whole(whole)
    speller.check(ids, texts)
    return ids


def _masked_in(found: Any, speller: Speller) -> Any:
    """JSON whose texts spell no control token: a description of a tool is somebody's words, too."""
    if isinstance(found, str):
        return speller.mask(found)
    if isinstance(found, dict):
        return {speller.mask(key): _masked_in(value, speller) for key, value in found.items()}
    return [_masked_in(one, speller) for one in found] if isinstance(found, list) else found


def _begins_with(tokenizer) -> list[int]:
    """The ids that the tokenizer puts before a text of its own accord: BOS, where it has one."""
    text = "a"
    alone, whole = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
    starts = (n for n in range(len(whole)) if whole[n : n + len(alone)] == alone)
    return whole[: next(starts, 0)]
