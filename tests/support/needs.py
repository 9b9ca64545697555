"""What a test needs of the machine: where it is missing the test is skipped, but fails where CI=true."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(problem: str) -> NoReturn:
    """Skips the test with what is missing and how to get it; with CI=true in the environment it fails."""
    pytest.fail(problem) if os.environ.get("CI") == "true" else pytest.skip(problem)


def command(name: str, cure: str) -> str:
    """The path of a command, or `missing`, which says the cure: `apt-get install chromium`."""
    return shutil.which(name) or missing(f"no command {name}: {cure}")
