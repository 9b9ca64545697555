"""The tools of a recipe in one process: its functions, and the servers that it starts or connects to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from actors import tools
from actors.tool_config import ToolSource
from actors.tools import Tool, function_processes, functions
from actors.tools.mcp_server import McpServer
from protocols import named
from protocols.errors import SettingError

SETTING = "environment.tools"
CURE = "See docs/tools.md for what a tool is"


class Toolbox:
    """Functions run in `processes` of their own, at most. Raises SettingError where one cannot be found or is no tool.
    Safe for many threads."""

    def __init__(self, sources: Sequence[ToolSource], limit_s: float, processes: int):
        self._functions: list[Tool] = []
        self._servers: list[McpServer] = []
        for number, source in enumerate(sources):
            setting = f"{SETTING}.{number}"
            if source.mcp is not None:
                self._servers.append(McpServer(source.mcp, limit_s))
            else:
                tools = checked(setting, source)
                self._functions += function_processes.apart(tools, source, limit_s, processes)
        _once(self._functions)

    def __bool__(self) -> bool:
        return bool(self._functions or self._servers)

    def offered(self) -> list[Tool]:
        """All of them; opens the servers that are not open. Raises EpisodeFailure where one cannot be."""
        return [*self._functions, *(tool for server in self._servers for tool in server.tools())]

    def close(self) -> None:
        """Ends the servers; the next `offered` opens them again."""
        for server in self._servers:
            server.close()


def check(sources: Sequence[ToolSource], environments: Iterable[Tool], limit_s: float) -> bool:
    """Opens all once and closes it again; returns whether there are any. Raises SettingError where that fails, or two
    are of one name."""
    from actors.door import EpisodeFailure

    box = Toolbox(sources, limit_s, 1)
    try:
        found = [*environments, *box.offered()]
    except EpisodeFailure as failure:
        raise SettingError(SETTING, str(failure), "Try its command by hand, or leave it out") from None
    finally:
        box.close()
    _once(found)
    return bool(found)


def own(environment: Any) -> list[Tool]:
    """The tools that an environment offers itself. Raises SettingError where one is none."""
    name, found = type(environment).__name__, []
    for given in environment.tools():
        try:
            found.append(functions.tool(given) if callable(given) else _by_description(environment, name, given))
        except ValueError as error:
            raise SettingError("environment.name", f"{name}.tools(): {error}", CURE) from None
    _once(found)
    return found


def _by_description(environment: Any, name: str, given: Any) -> Tool:
    schema = tools.described(name, given)
    called = schema["function"]["name"]
    return functions.tool(lambda **arguments: environment.call(called, arguments), schema)


def checked(setting: str, source: ToolSource) -> list[Tool]:
    """The functions of a source as tools, which run where they are called."""
    found = named.load(setting, source.function, {})
    given = list(found) if isinstance(found, list | tuple) else [found]
    if source.openai and len(given) != 1:
        raise SettingError(f"{setting}.openai", f"{source.function} is a list", "Name one function")
    try:
        for one in given:
            if not callable(one):
                raise ValueError(f"{source.function} holds {one!r}, which is no function")
        return [functions.tool(one, source.openai or None) for one in given]
    except ValueError as error:
        raise SettingError(setting, str(error), CURE) from None


def _once(tools: Iterable[Tool]) -> None:
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise SettingError(SETTING, f"two tools are called {tool.name!r}", "Rename one, or leave it out (`only`)")
        seen.add(tool.name)
