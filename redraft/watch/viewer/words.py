"""Token ids as text: each token's own piece, whatever the vocabulary is made of.

A token of a byte-level vocabulary can be a part of a character. Decoding goes on until a character is whole; the text
then stands at its last token, and the tokens before it say None:

    ids     [ 72, 105, 226, 130, 172 ]      words   ["H", "i", None, None, "€"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

LONGEST = 4  # bytes of a UTF-8 character
BROKEN = "\N{REPLACEMENT CHARACTER}"


class Words:
    """Spells with the tokenizer of a model's folder, without loading any model.

    `folders` are tried in order. Where none has a tokenizer, words are the ids, and `problem` says why.
    """

    def __init__(self, folders: Sequence[Path]):
        self._tokenizer, self.problem = None, ""
        self._special: set[int] = set()
        files = [folder / "tokenizer.json" for folder in folders]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            looked = " or ".join(str(file) for file in files)
            self.problem = f"Token ids are shown, since there is no {looked} to spell them with."
            return
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises no kind of its own
            self.problem = f"Token ids are shown, since {file} cannot be read: {error}"
            return
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}

    def spell(self, ids: Sequence[int]) -> list[str | None]:
        """The text of each token; None where it is a part of the character that a later one completes."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return [f"{number} " for number in ids]

        def decode(part: Sequence[int]) -> str:
            return tokenizer.decode(list(part), skip_special_tokens=False)

        words: list[str | None] = []
        before = start = 0  # ids[before:start] were spelled last: some decoders look back at the token before
        seen = ""
        for place, number in enumerate(ids):
            text = decode(ids[before : place + 1])
            if text.endswith(BROKEN) and place + 1 < len(ids) and place + 1 - start < LONGEST:
                words.append(None)
                continue
            words.append(text[len(seen) :] if tokenizer.id_to_token(number) is not None else f"<{number}>")
            before, start = start, place + 1
            seen = decode(ids[before:start])
        return words

    def special(self, ids: Sequence[int]) -> list[int]:
        """The places of special tokens."""
        return [place for place, number in enumerate(ids) if number in self._special]
