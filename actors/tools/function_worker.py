"""Calls functions of a recipe: the program behind actors/tools/function_processes.py.

It hears {"name", "openai", "code", "path"}, then {"tool", "arguments"}, and answers as actors/answering.py says: with
what the model reads and whether that is an error, or with what it returned that no model can read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from actors import answering


def begin(first: dict[str, Any]) -> Callable[[dict], dict]:
    sys.path[:] = first["path"]
    from actors import door
    from actors.tool_config import ToolSource
    from actors.tools import toolbox
    from protocols import own_code

    own_code.install(first["code"])
    source = ToolSource(function=first["name"], openai=first["openai"])
    tools = {tool.name: tool for tool in toolbox.checked("environment.tools", source)}

    def answer(question: dict) -> dict:
        found = tools[question["tool"]].run(question["arguments"])
        try:
            return {"said": door.tool(question["tool"], found.value), "refused": found.refused}
        except door.EpisodeFailure as failure:
            return {"broken": str(failure)}

    return answer


if __name__ == "__main__":
    answering.serve(begin, float(sys.argv[1]))
