"""Token ids as words, by the tokenizer of a model's folder: see actors/spelled.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.spelled import pieces


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

        known = [tokenizer.id_to_token(number) is not None for number in ids]
        words = pieces(ids, decode)
        return [word if known[place] else f"<{ids[place]}>" for place, word in enumerate(words)]

    def special(self, ids: Sequence[int]) -> list[int]:
        """The places of special tokens."""
        return [place for place, number in enumerate(ids) if number in self._special]
