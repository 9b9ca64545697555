"""A run folder belongs to the run whose id is in its run.json. Whoever writes into one looks before: a folder can be
renamed under a process that lives, and another run be made at its path."""

from __future__ import annotations

import json
from pathlib import Path

from protocols.errors import SettingError

FACTS = "run.json"


def check(folder: Path, run_id: str) -> None:
    """Raises SettingError where `folder` is gone, or another run's. A folder without the file is nobody else's."""
    file = folder / FACTS
    try:
        found = json.loads(file.read_text())["id"] if file.exists() or not folder.exists() else run_id
    except FileNotFoundError:
        problem = f"{folder}, the folder of the run {run_id}, is not there any more"
        raise SettingError("--run", problem, "Put it back, and go on with --resume") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{file} does not say whose folder it is: {error or type(error).__name__}"
        raise SettingError("--run", problem, "Restore it from a copy, and go on with --resume") from error
    if found != run_id:
        problem = f"{folder} is the run {found}'s now; nothing of the run {run_id} is written there"
        raise SettingError("--run", problem, "Go on with that one under the name that its folder has now")
