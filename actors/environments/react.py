"""Messages in the form of ReAct (arXiv 2210.03629): a thought, if any, and one action."""

from __future__ import annotations

import re

FORM = """\
In each message you give one action, after a thought if you like:
Thought: <what you think>
Action: <one action>"""


def action(text: str) -> str:
    """The first line with something on it after the last "Action:", or ""; the whole text where that word is missing.
    Spaces around it do not count."""
    *before, last = re.split(r"^[ \t]*action:", text, flags=re.MULTILINE | re.IGNORECASE)
    return last.strip().partition("\n")[0].strip() if before else last.strip()
