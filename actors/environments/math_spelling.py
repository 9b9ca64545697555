"""One spelling of what LaTeX answers write in several ways."""

from __future__ import annotations

import re


def _mixed(found: re.Match[str]) -> str:
    """A mixed number as a fraction: 3 1/4 -> 13/4. math-verify takes it for a product."""
    whole, above, below = map(int, found.groups())
    return rf"\frac{{{whole * below + above}}}{{{below}}}"


SPELLINGS = [
    (re.compile(pattern, re.ASCII), other)
    for pattern, other in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it))\s*(?=\{)", r"\\text"),
        (r",\s*\\!\s*|\{,\}", ","),
        (r"\\!|\\?\$", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;: ]|~|\s", " "),  # but the row end of a matrix stays
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"\^\s*\{\s*(\\circ|\w)\s*\}", r"^\1"),
        # A space matters between letters (`\cot x`), between digits, and where it keeps `5, 115` from being 5115.
        (r"(?<![A-Za-z\d,]) +| +(?![A-Za-z\d])|(?<=[A-Za-z]) +(?=\d)|(?<=\d) +(?!\d)|(?<=,) +(?!\d{3}(?!\d))", ""),
        (r"^\\text\{([^{}]*)\}\.*$", r"\1"),
        (r"\.+$", ""),
        (r"(?<![\d.)}])(\d+) (\d+)/(\d+)(?![\d.])", _mixed),
        (r"^\(([A-Z])\)$", r"\1"),  # a choice: (C)
    )
]


def canonical(answer: str) -> str:
    r"""One spelling of what is written in several ways: `\dfrac 12` -> `\frac{1}{2}`, `\text{(C)}` -> `C`."""
    for pattern, other in SPELLINGS:
        answer = pattern.sub(other, answer)
    return answer
