"""A real pretrained model for tests: `from support.smollm2 import smollm2`."""

from __future__ import annotations

import fcntl
from pathlib import Path

from protocols.errors import SettingError
from redraft.models import make as models
from support import needs
from support.places import ROOT

CACHE = ROOT / ".cache" / "models"


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct (bfloat16), which the first caller fetches into the cache that runs use, too.

    Where that cannot be done the test is skipped; with CI=true in the environment it fails.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that start at once download once
        try:
            return models.fetch("smollm2", None, CACHE)
        except SettingError as error:
            needs.missing(str(error))
