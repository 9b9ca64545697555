"""Reads the JSON lines of a data folder, and says which tasks of an undivided one are for testing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SHOWN = 80  # characters of a line that is wrong


def rows(file: Path) -> list[dict]:
    """One map a line; blank lines and a byte order mark do not count. Raises OSError, or ValueError with the line."""
    with file.open(encoding="utf-8-sig") as lines:
        return [_row(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _row(file: Path, number: int, line: str) -> dict:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {file.name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"line {number} of {file.name} is no map: {line.strip()[:SHOWN]}")
    return found


def field(row: dict, name: str, identity: str) -> str:
    """The text of a column. Raises ValueError that names the row."""
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{identity} has {name}={value!r}, which is no text")
    return value


def shuffled(key: str) -> bytes:
    """A sort key: an order that means nothing and is the same everywhere, so that the first n are a fair sample."""
    return hashlib.blake2b(key.encode()).digest()


def held_out(key: str) -> bool:
    """True for a fifth of all keys, the same ones everywhere: these tasks are the test split."""
    return shuffled(key)[0] % 5 == 0
