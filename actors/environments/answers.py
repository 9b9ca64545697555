r"""Finds the final answer in a response: what its last `\boxed{}` holds."""

from __future__ import annotations

import re

BOXED = r"\boxed{"
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character of the answer, and closes nothing


def boxed(text: str) -> str | None:
    r"""The inside of the last `\boxed{}`; None where there is none, or where its brace never closes."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    begin, depth = start + len(BOXED), 1
    for mark in BRACE.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return text[begin : mark.start()]
    return None
