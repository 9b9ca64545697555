"""JSON that every reader takes: no NaN and no infinite number.

Python writes NaN and Infinity, which JSON does not have, so that browsers and other languages refuse the whole line.
What an environment says may hold them; in files they are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **how: Any) -> str:
    """`value` as JSON text; `how` as json.dumps takes it. What is no JSON value is written as its text."""
    try:
        return json.dumps(value, allow_nan=False, **how)
    except (ValueError, TypeError):
        return json.dumps(_strict(value), allow_nan=False, **how)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(one) for one in value]
    return value if value is None or isinstance(value, str | int) else str(value)
