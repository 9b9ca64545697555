"""Reads the JSON lines of a data folder, and says which tasks of an undivided one are for testing."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

SHOWN = 80  # characters of a line that is wrong


def rows(file: Path) -> list[dict]:
    """One map a line; blank lines and a byte order mark do not count. Raises OSError, or ValueError with the line."""
    return [row for _, row in numbered(file)]


def numbered(file: Path) -> Iterator[tuple[int, dict]]:
    """The same with the numbers of the lines, from 1. Only a line feed ends a line, so texts may hold U+2028."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, _row(file, number, line)


def _row(file: Path, number: int, raw: bytes) -> dict:
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} of {file.name} is not utf-8: byte {raw[error.start]:#x}") from None
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
