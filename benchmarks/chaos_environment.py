"""An environment that answers slowly while a file exists, whose name is in the environment variable CHAOS_SLOW."""

from __future__ import annotations

import os
import time
from zlib import crc32

from actors.environments.base import OneAnswer, Verdict

SLOW_S = 1.0  # that an answer waits then
TASKS = {"train": 512, "test": 8}


def wait() -> None:
    if os.path.exists(os.environ.get("CHAOS_SLOW", "")):
        time.sleep(SLOW_S)


class SlowCoins(OneAnswer):
    """Any text is right about half of the time, so that groups differ whatever an engine says."""

    right, wrong = "yes!", "no."

    @classmethod
    def tasks(cls, data, split):
        return [{"id": f"{split}/{number}", "number": number} for number in range(TASKS[split])]

    def question(self, task: dict) -> str:
        return f"coin {task['id']}\n"

    def judge(self, task: dict, text: str) -> Verdict:
        wait()
        return Verdict(float(crc32(text.encode()) % 2), text)
