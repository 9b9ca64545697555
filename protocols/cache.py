"""Where this machine keeps what can be had again: models, compiled kernels. A node's own disk or volume is best."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "REDRAFT_CACHE"


def folder(part: str) -> Path:
    """That of one kind of things: in the folder that REDRAFT_CACHE names, else in .cache here."""
    return Path(os.environ.get(VARIABLE) or ".cache").expanduser().absolute() / part
