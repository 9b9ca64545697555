"""Token ids as text: each token's own piece, whatever the vocabulary is made of.

A token of a byte-level vocabulary can be a part of a character. Decoding goes on until a character is whole; the text
then stands at its last token, and the tokens before it say None:

    ids     [ 72, 105, 226, 130, 172 ]      pieces   ["H", "i", None, None, "€"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONGEST = 4  # bytes of a UTF-8 character
BROKEN = "\N{REPLACEMENT CHARACTER}"


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str | None]:
    """The text of each token; None where it is a part of the character that a later one completes."""
    found: list[str | None] = []
    before = start = 0  # ids[before:start] were spelled last: some decoders look back at the token before
    seen = ""
    for place in range(len(ids)):
        text = decode(ids[before : place + 1])
        if text.endswith(BROKEN) and place + 1 < len(ids) and place + 1 - start < LONGEST:
            found.append(None)
            continue
        found.append(text[len(seen) :])
        before, start = start, place + 1
        seen = decode(ids[before:start])
    return found
