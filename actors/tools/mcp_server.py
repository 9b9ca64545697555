"""A server of the Model Context Protocol whose tools a model may call: one connection for all episodes of a process.

The client's cancel scopes must be left by the task that entered them, so one task of a thread of its own opens the
connection, holds it, and closes it; calls come from any thread. A connection that ended is made anew by whoever needs
it next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any

from actors import tools
from actors.door import EpisodeFailure, hung
from actors.tool_config import McpSettings
from actors.tools import Answer, Tool

END_S = 8.0  # the client waits 2 s for a server to end, and as long again after each of two signals
MARGIN_S = 0.5  # after which a call that the client's own limit did not end is given up


class McpServer:
    """Opened when its tools are first asked for. Raises EpisodeFailure where it cannot be reached, does not answer
    within `limit_s`, or has gone. Safe for many threads."""

    def __init__(self, settings: McpSettings, limit_s: float):
        self._settings, self._limit = settings, limit_s
        self._lock = threading.Lock()
        self._open: _Connection | None = None

    @property
    def name(self) -> str:
        return self._settings.url or " ".join(self._settings.command)

    def tools(self) -> list[Tool]:
        """Those that it lists and `only` allows."""
        listed = self._connection().listed()
        found = [one for one in listed if not self._settings.only or one.name in self._settings.only]
        if missing := sorted(set(self._settings.only) - {one.name for one in found}):
            known = ", ".join(one.name for one in listed) or "none"
            raise EpisodeFailure("returned", f"MCP server {self.name} has no tool {missing[0]!r}; it has: {known}")
        return [self._tool(one) for one in found]

    def close(self) -> None:
        with self._lock:
            gone, self._open = self._open, None
        if gone is not None:
            gone.close()

    def _tool(self, listed: Any) -> Tool:
        name = listed.name
        try:
            schema = tools.described(
                f"MCP server {self.name}",
                {"name": name, "description": listed.description, "parameters": listed.input_schema},
            )
        except ValueError as error:
            raise EpisodeFailure("returned", str(error)) from None
        return Tool(schema, lambda arguments: self._call(name, arguments), limited=True)

    def _connection(self) -> _Connection:
        """One that is open; whoever asks while it opens waits for the same one."""
        with self._lock:
            if self._open is None or not self._open.lives:
                self._open = _Connection(self._settings, self._limit)
            connection = self._open
        try:
            connection.listed()
        except (TimeoutError, CancelledError):
            self._drop(connection)
            raise hung(f"MCP server {self.name}", self._limit) from None
        except BaseException as error:
            self._drop(connection)
            raise EpisodeFailure("raised", f"MCP server {self.name} cannot be used: {_cause(error)}") from None
        return connection

    def _call(self, name: str, arguments: dict[str, Any]) -> Answer:
        from mcp.shared.exceptions import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        connection, began = self._connection(), time.monotonic()
        try:
            came = connection.ask(name, arguments)
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise self._late(connection, name, began) from None
            if error.code == CONNECTION_CLOSED:
                raise self._gone(connection) from None
            return Answer(str(error), refused=True)  # it lives, and says that it does not take this call
        except TimeoutError:
            raise self._late(connection, name, began) from None
        except (RuntimeError, CancelledError, OSError) as error:
            if isinstance(error, RuntimeError) and connection.lives:  # what came is not as the tool's schema says
                raise EpisodeFailure("returned", f"tool {name}: {_cause(error)}") from None
            raise self._gone(connection) from None  # its loop has ended
        words = "\n".join(_words(part) for part in came.content)
        return Answer(words, bool(came.is_error))

    def _gone(self, connection: _Connection) -> EpisodeFailure:
        self._drop(connection)
        return EpisodeFailure("raised", f"MCP server {self.name} has gone")

    def _late(self, connection: _Connection, name: str, began: float) -> EpisodeFailure:
        """One that answered nobody else meanwhile hangs as a whole, and is let go."""
        if connection.answered_at < began:
            self._drop(connection)
        return hung(f"tool {name}", self._limit)

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            if self._open is connection:
                self._open = None
        connection.end()


class _Connection:
    """One connection, from its thread's start to its end."""

    def __init__(self, settings: McpSettings, limit_s: float):
        self._settings, self._limit = settings, limit_s
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._client: Any = None
        self.answered_at = 0.0
        self._opened: Future[list] = Future()
        self._task: asyncio.Task | None = None
        self._thread = threading.Thread(target=self._run, name="mcp", daemon=True)
        self._thread.start()

    @property
    def lives(self) -> bool:
        return self._thread.is_alive() and not self._ended.is_set()

    def listed(self) -> list:
        """The server's tools, once it is open. Raises TimeoutError, or what kept it from opening."""
        return self._opened.result(self._limit)

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        """What the server makes of a call. Raises MCPError, TimeoutError, or what a loop that ended raises."""
        work = asyncio.run_coroutine_threadsafe(
            self._client.call_tool(name, arguments, read_timeout_seconds=self._limit), self._loop
        )
        try:
            came = work.result(self._limit + MARGIN_S)
        except TimeoutError:
            work.cancel()
            raise
        self.answered_at = time.monotonic()
        return came

    def end(self) -> None:
        """Has it closed, without waiting for that."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._ended.set()
        if self._task is not None and not self._opened.done():  # it waits for a server that does not answer
            self._task.cancel()

    def close(self) -> None:
        self.end()
        self._thread.join(END_S)

    def _run(self) -> None:
        try:
            self._task = self._loop.create_task(self._hold())
            self._loop.run_until_complete(self._task)
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
        finally:
            with contextlib.suppress(Exception):
                self._loop.close()

    async def _hold(self) -> None:
        from mcp import Client, StdioServerParameters

        program = self._settings.command
        where: Any = self._settings.url
        if program:
            kept = {key: os.environ[key] for key in self._settings.inherit if key in os.environ}
            where = StdioServerParameters(command=program[0], args=program[1:], env=kept)
        async with Client(where) as self._client:
            self._opened.set_result(await self._listed())
            await self._ended.wait()

    async def _listed(self) -> list:
        found, page = [], await self._client.list_tools()
        while True:
            found += page.tools
            if not page.next_cursor:
                return found
            page = await self._client.list_tools(cursor=page.next_cursor)


def _words(part: Any) -> str:
    """A part of an answer as text; pictures and sounds are named, since the model reads text alone."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{getattr(part, 'type', 'something')} left out]"


def _cause(error: BaseException) -> str:
    """The innermost of what task groups wrap."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
