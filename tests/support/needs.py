"""What a test needs of the machine, by its markers: where it is missing the test is skipped, or fails if CI=true."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import NoReturn

import pytest

COMMANDS = {
    "browser": ("chromium", "apt-get install chromium"),
    "prometheus": ("promtool", "apt-get install prometheus"),
    "slurm": ("slurmctld", "apt-get install slurmctld slurmd slurm-client munge iproute2"),
    "java": ("java", "apt-get install default-jre-headless"),
    "compiler": ("cc", "apt-get install gcc libc6-dev"),
}
"""The command that a marker stands for, and how to get it."""
PACKAGES = {"java": ("scienceworld", "make setup")}
"""The Python package that it needs beside."""
BY_FIXTURE = {
    "browser": "browser",
    "data_folder": "data",
    "library": "compiler",
    "watched": "prometheus",
}
"""What who uses a fixture needs: its marker is given to the test."""


def mark(item: pytest.Item) -> None:
    """Gives a test the markers of what its fixtures need, so that `-m "not browser"` means all who need one."""
    for fixture in BY_FIXTURE.keys() & set(item.fixturenames):
        item.add_marker(BY_FIXTURE[fixture])


def check(item: pytest.Item) -> None:
    """Skips a test whose command is missing, with the words that say how to get it."""
    for marker, (command, cure) in COMMANDS.items():
        if item.get_closest_marker(marker) and shutil.which(command) is None:
            missing(f"there is no {command} here: {cure}")
    for marker, (package, cure) in PACKAGES.items():
        if item.get_closest_marker(marker) and find_spec(package) is None:
            missing(f"there is no package {package} here: {cure}")


def missing(problem: str) -> NoReturn:
    """Skips the test with what is missing and how to get it; with CI=true in the environment it fails."""
    pytest.fail(problem) if os.environ.get("CI") == "true" else pytest.skip(problem)
