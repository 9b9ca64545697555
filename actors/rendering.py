"""Turns messages into token ids, such that nothing that a model has read or written is ever tokenised again.

The first prompt goes through the tokenizer's chat template. Each later prompt is only what stands between the last
token of the model's answer and the first of its next one:

    model's answer  | <end>  "\\n<user>"  environment's message  "<end>\\n<assistant>"  |  model's next answer
                       ^ left out where the answer already ended with it

Where these pieces lie is found once, by rendering two probes: a question alone, and the question answered with another
one following. If the first is not the beginning of the second, the template rewrites what it has shown before (it
strips thinking from earlier answers, say), and then tokens cannot just be appended. A tokenizer without a template is
plain concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from protocols.errors import SettingError
from protocols.turns import TOKENS

SHORT, KEPT = 200, 4096  # what environments say again and again: up to so many characters, so many such texts
QUESTION, ANSWER, FOLLOWING = "Redraft probes a question", "Redraft probes an answer", "Redraft probes what follows"
THINKING = f"<think>\nRedraft probes thinking\n</think>\n\n{ANSWER}"


def check_tokenizer(tokenizer) -> None:
    """Raises SettingError where a tokenizer lacks what training and sampling need."""
    for kind in ("eos_token", "pad_token"):
        if getattr(tokenizer, kind, None) is None:
            raise SettingError("model.path", f"its tokenizer has no {kind}", f"Save a copy with `tokenizer.{kind}` set")


class Renderer:
    """Renders for one transformers tokenizer. Raises SettingError where that cannot be done faithfully.

    `end` is the id that ends an answer, as the template has it (it need not be the tokenizer's eos). A template that
    rewrites history is refused, unless `on_rewrite` is "new_root": then `rewrites` is True, `next` must not be used,
    and each prompt is a new root, `first(question, history)`.
    """

    def __init__(self, tokenizer, on_rewrite: Literal["refuse", "new_root"] = "refuse"):
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._encode_again = lru_cache(KEPT)(self._encode_anew)
        self.rewrites = False
        self.end: int = tokenizer.eos_token_id
        self._before = self._after = ""
        if tokenizer.chat_template:
            self._probe(on_rewrite)

    def first(self, text: str, history: Sequence[tuple[str, str]] = ()) -> np.ndarray:
        """int32 ids of a whole prompt; `history` holds earlier (question, answer) pairs of the dialogue."""
        messages = [m for question, answer in history for m in (_user(question), _assistant(answer))]
        if self.tokenizer.chat_template:
            return self._encode(self._render([*messages, _user(text)]))
        end = self.tokenizer.decode([self.end])
        return self._encode("".join(q + a.removesuffix(end) + end for q, a in history) + text)

    def next(self, text: str, ended: bool) -> np.ndarray:
        """int32 ids from the model's last id to its next answer. `ended`: that last id is the end token."""
        if self.rewrites:
            raise ValueError("this template rewrites history: render a new root with `first`")
        if self.tokenizer.chat_template:
            ids = self._encode(self._before + text + self._after)
            return ids[1:] if ended else ids
        ids = self._encode(text)
        return ids if ended else np.concatenate([np.array([self.end], TOKENS), ids])

    def answer(self, text: str) -> np.ndarray:
        """int32 ids of a message that the model did not write itself, with its end token."""
        return np.concatenate([self._encode(text), np.array([self.end], TOKENS)])

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """What a response says, without its end token."""
        ids = list(map(int, ids))
        if ids and ids[-1] == self.end:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _encode(self, text: str) -> np.ndarray:
        """int32 ids, not to be written to."""
        return self._encode_again(text) if len(text) <= SHORT else self._encode_anew(text)

    def _encode_anew(self, text: str) -> np.ndarray:
        if not text:
            return np.empty(0, TOKENS)
        ids = np.array(self.tokenizer.encode(text, add_special_tokens=False), TOKENS)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise SettingError("model", f"its tokenizer cannot spell {text[:80]!r}", "Use one that knows all of it")
        ids.flags.writeable = False
        return ids

    def _render(self, messages: list[dict]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _probe(self, on_rewrite: str) -> None:
        opening = self._render([_user(QUESTION)])
        for answer in (THINKING, ANSWER):  # ends with the plain answer, whose surroundings are then used
            whole = self._render([_user(QUESTION), _assistant(answer), _user(FOLLOWING)])
            self.rewrites |= not whole.startswith(opening + answer)
        if self.rewrites and on_rewrite == "refuse":
            problem = "its chat template rewrites earlier messages (strips thinking, say), so prompts do not just grow"
            raise SettingError("model", problem, "Use a model or a template that keeps them as they were")
        rest = whole[whole.index(ANSWER) + len(ANSWER) :]
        self._before, found, self._after = rest.partition(FOLLOWING)
        if not found:
            raise SettingError("model", "its chat template alters the user's text", "Use a template that keeps it")
        self.end = self._end(self._before)

    def _end(self, between: str) -> int:
        """The special token at the start of what stands between an answer and the next question."""
        ids = self.tokenizer.encode(between, add_special_tokens=False)
        added = self.tokenizer.added_tokens_decoder
        if not ids or ids[0] not in added or not added[ids[0]].special:
            problem = "its chat template does not end an answer with a special token"
            raise SettingError("model", problem, "Use a template that ends answers with, for example, the eos token")
        return ids[0]


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}
