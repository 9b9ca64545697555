"""What a person sees of a command's log lines: ours, and of libraries only errors."""

import subprocess
import sys

from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

LOUD = """
from redraft import logs
logs.to_terminal("quickstart")
from deepspeed.utils.logging import logger
logger.warning("a warning of a library")
logger.error("an error of a library")
"""


def test_a_library_that_sets_its_own_level_is_heard_from_errors_up():
    command = [sys.executable, "-c", LOUD]
    said = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60), env=ENVIRONMENT)
    assert said.returncode == 0, said.stderr
    assert "an error of a library" in said.stdout and "a warning of a library" not in said.stdout
