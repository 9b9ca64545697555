"""Text to token ids, such that words of a task or an environment never become control tokens.

A tokenizer reads `<|im_end|>` as the token that ends a message, wherever it stands. In what a template writes that is
meant; in a task's text it would end the user's message and let the text speak for the model. So a text that spells a
control token is encoded apart: the template's control tokens cut the whole into stretches, and in those between them
the spelling is read as ordinary characters. Any other text is encoded in one piece, as the template's author does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from protocols.errors import SettingError
from protocols.turns import TOKENS

NEVER = r"(?!)"  # matches nothing
MASK = 0xF0000
"""The first of the characters of Unicode's private use that stand for spellings while a template is rendered."""


class CannotSpell(SettingError):
    """The tokenizer has no tokens for a text."""


class Speller:
    """Encodes for one transformers tokenizer. `controls` are ids of control tokens that it does not list as special."""

    def __init__(self, tokenizer, controls: Iterable[int] = ()):
        self._tokenizer, self._unknown = tokenizer, tokenizer.unk_token_id
        known = tokenizer.added_tokens_decoder
        wanted = set(controls)
        self._added = {token.content: (n, token) for n, token in known.items() if token.special or n in wanted}
        self._ids = {n for n, _ in self._added.values()}
        self._every, self._alone = _any_of(self._added), _any_of(())
        # Some tokenizers drop what they cannot spell: the newline of a character tokenizer, read as one of Qwen 2.
        self._alone = _any_of(text for text in self._added if not self.plain(text))
        # The newline of a character tokenizer, say, is its end token and has no other spelling.
        hidden = [text for text, (n, _) in self._added.items() if not {n, self._unknown} & set(self.plain(text))]
        self._masks = {text: chr(MASK + n) for n, text in enumerate(hidden)}
        self._spellings = {mask: text for text, mask in self._masks.items()}
        self._controls, self._masked = _any_of(self._masks), _any_of(self._spellings)

    def spells_control(self, text: str) -> bool:
        return self._controls.search(text) is not None

    def mask(self, text: str, only: set[int] | None = None) -> str:
        """The text with a character in the place of each spelling of a control token (of those ids), for `unmasked`."""

        def masked(found: re.Match) -> str:
            return self._masks[found[0]] if only is None or self._added[found[0]][0] in only else found[0]

        return self._controls.sub(masked, text)

    def whole(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant."""
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token, as far as the tokenizer can spell that."""
        if not text:
            return []
        ids, done = [], 0
        for found in self._alone.finditer(text):
            ids += [*self._piece(text[done : found.start()]), self._added[found[0]][0]]
            done = found.end()
        return ids + self._piece(text[done:])

    def _piece(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self._ids.isdisjoint(ids):
            return ids
        # The model of this tokenizer holds the control token as a word of its own: cut each after its first character.
        cuts = [0, *(found.start() + 1 for found in self._every.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
        encode = self._tokenizer.encode
        return [n for part in parts if part for n in encode(part, add_special_tokens=False, split_special_tokens=True)]

    def unmasked(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant, but for those that `mask` took out of it."""
        ids: list[int] = []
        done, strip = 0, False
        for found in self._every.finditer(text):
            number, token = self._added[found[0]]
            ids += self._stretch(text[done : found.start()], strip, token.lstrip)
            ids.append(number)
            done, strip = found.end(), token.rstrip
        return ids + self._stretch(text[done:], strip, False)

    def check(self, ids: list[int], texts: Iterable[str]) -> None:
        """Raises CannotSpell where `ids` hold an unknown token that one of `texts` brought in."""
        if self._unknown is None or self._unknown not in ids:
            return
        for text in texts:
            if self._unknown in self.plain(text):
                cure = "Use one that knows all of it"
                raise CannotSpell("model", f"its tokenizer cannot spell {text[:80]!r}", cure)

    def _stretch(self, text: str, left: bool, right: bool) -> list[int]:
        """Ids between two control tokens, which may swallow the space beside them."""
        text = text.lstrip() if left else text
        text = text.rstrip() if right else text
        return self.plain(self._masked.sub(lambda found: self._spellings[found[0]], text))


def frozen(ids: list[int]) -> np.ndarray:
    """int32 ids, not to be written to."""
    array = np.array(ids, TOKENS)
    array.flags.writeable = False
    return array


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the texts, the longest first; nothing where there is none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or NEVER)
