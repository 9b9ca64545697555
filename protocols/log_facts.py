"""What log lines are about: facts that lines as JSON carry beside their text, such as group, lease and step.

with about(group=..., lease=...):  for all that is logged within, tasks that are begun there included
now(step=...)                      for all that this process logs from now on
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

Fact = str | int
_within: ContextVar[dict[str, Fact]] = ContextVar("within", default={})  # noqa: B039  never changed, only replaced
_standing: dict[str, Fact] = {}


@contextlib.contextmanager
def about(**facts: Fact) -> Iterator[None]:
    token = _within.set(_within.get() | facts)
    try:
        yield
    finally:
        _within.reset(token)


def now(**facts: Fact) -> None:
    _standing.update(facts)


def known() -> dict[str, Fact]:
    """All facts that hold where this is called."""
    return _standing | _within.get()
