"""Where things are, and what a process that a test starts needs to import our packages and the tests' own helpers."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
