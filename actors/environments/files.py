"""Reads the JSON lines of a data folder, and says which tasks of an undivided one are for testing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def rows(file: Path) -> list[dict]:
    """One map a line. Raises OSError or ValueError."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def shuffled(key: str) -> bytes:
    """A sort key: an order that means nothing and is the same everywhere, so that the first n are a fair sample."""
    return hashlib.blake2b(key.encode()).digest()


def held_out(key: str) -> bool:
    """True for a fifth of all keys, the same ones everywhere: these tasks are the test split."""
    return shuffled(key)[0] % 5 == 0
