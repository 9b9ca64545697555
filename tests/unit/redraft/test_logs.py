"""What a person sees of log lines, and what a program reads of them."""

import asyncio
import json
import subprocess
import sys

import pytest
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

from protocols.log_facts import about, known, now

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


PART = r"""
import logging, sys
from pathlib import Path
from protocols.log_facts import about, now
from redraft import logs
logs.to_file(Path(sys.argv[1]), "exp-1", "actor-0", sys.argv[2])
log = logging.getLogger("redraft.actor")
log.info("the engine is up, after %.1f s", 2.5)
now(step=7)
with about(group="ab12", lease=3):
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("gives up\nthe group")
logging.getLogger("vllm").warning("a warning of a library")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_part_logs_for_people_into_its_file_and_for_programs_a_line_of_json_each_on_its_output(tmp_path, form):
    (tmp_path / "logs").mkdir()
    command = [sys.executable, "-c", PART, str(tmp_path), form]
    said = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60), env=ENVIRONMENT)
    assert said.returncode == 0, said.stderr
    text = (tmp_path / "logs" / "actor-0.log").read_text()
    assert "I exp-1 actor-0: the engine is up, after 2.5 s" in text and "ZeroDivisionError" in text
    if form == "text":
        assert said.stdout == ""
        return
    up, failed = map(json.loads, said.stdout.splitlines())
    time = up.pop("time")
    assert up == {
        "level": "info",
        "logger": "redraft.actor",
        "run": "exp-1",
        "part": "actor-0",
        "message": "the engine is up, after 2.5 s",
    }
    assert time.endswith("Z") and len(time) == len("2026-01-01T00:00:00.000Z")
    assert (failed["group"], failed["lease"], failed["step"]) == ("ab12", 3, 7)
    assert failed["message"] == "gives up\nthe group" and "ZeroDivisionError" in failed["error"]


def test_what_a_line_is_about_holds_within_and_in_tasks_that_are_begun_there_and_nowhere_else():
    async def one(group: str) -> list[object]:
        with about(group=group):
            return await asyncio.gather(*(asyncio.create_task(inner()) for _ in range(2)))

    async def inner() -> object:
        await asyncio.sleep(0)
        return known().get("group")

    async def both() -> list[list[object]]:
        return await asyncio.gather(one("a"), one("b"))

    assert asyncio.run(both()) == [["a", "a"], ["b", "b"]]
    assert "group" not in known()
    now(step=1)
    now(step=2)
    assert known()["step"] == 2
