"""Keeps the packages of Redraft apart from files of the same name in the user's folder: its replay.py, its learner.py.

Python looks in the working directory first where a program is started with `-m` or with PYTHONPATH=., and Ray has each
worker do so. Own parts are found by their file (protocols/own_code.py), so nothing of the user's need be there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("protocols", "actors", "replay", "learner")
ROOT = str(Path(__file__).parents[1])


def keep_apart() -> None:
    """Where something else would be found under the name of one of the packages, these are looked for first from now
    on, here and in programs that this process starts."""
    if all(map(_is_ours, PACKAGES)):
        return
    sys.path.insert(0, ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    os.environ["PYTHONSAFEPATH"] = "1"


def _is_ours(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None and Path(found.origin).is_relative_to(ROOT)
