"""Functions of a recipe as tools that run in processes of their own: one that loops is killed, and leaves no thread.

They are described in the actor, from their types and docstrings, and called in function_worker.py. A process serves
one call at a time, and is started where no other is free.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from actors.door import EpisodeFailure, hung
from actors.environments.killable import Killable, Lost
from actors.tool_config import ToolSource
from actors.tools import Answer, Tool
from protocols import own_code


def apart(tools: Sequence[Tool], source: ToolSource, limit_s: float, processes: int) -> list[Tool]:
    """The tools of a source, each call of which ends within `limit_s`; at most `processes` of them at once."""
    name, described = source.function, json.dumps(source.openai, sort_keys=True)
    code = own_code.sources(name) if own_code.is_file(name) else {}
    workers = _workers(name, described, tuple(sorted(code.items())), limit_s, processes)
    return [replace(tool, run=partial(_called, workers, tool.name, limit_s), limited=True) for tool in tools]


@lru_cache(None)
def _workers(name: str, described: str, code: tuple[tuple[str, str], ...], limit_s: float, processes: int) -> Killable:
    """One for all episodes of this process."""
    first = {"name": name, "openai": json.loads(described), "code": dict(code), "path": sys.path}
    program = Path(__file__).with_name("function_worker.py")
    orphan_s = limit_s * (os.cpu_count() or 1)
    return Killable(program, [str(orphan_s)], processes=processes, queue_s=limit_s, first=first)


def _called(workers: Killable, name: str, limit_s: float, arguments: dict[str, Any]) -> Answer:
    """Raises EpisodeFailure where the function ends its process or hangs, or returns what no model can read."""
    try:
        found = workers.ask(f"tool {name}", {"tool": name, "arguments": arguments}, limit_s)
    except Lost as lost:
        raise (
            hung(f"tool {name}", limit_s) if lost.hung else EpisodeFailure("raised", f"tool {name} ended its process")
        ) from None
    if "raised" in found:
        raise EpisodeFailure("raised", found["raised"])
    if "broken" in found["value"]:
        raise EpisodeFailure("returned", found["value"]["broken"])
    return Answer(found["value"]["said"], found["value"]["refused"])
