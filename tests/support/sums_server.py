"""An MCP server that tests of tools run by its path: on standard input and output, or by HTTP at `--port N`. `--late`
never answers anything.
"""

from __future__ import annotations

import os
import sys
import threading

from mcp.server import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def divide(a: int, b: int) -> float:
    """Divides one number by another."""
    return a / b


@server.tool()
def pid() -> str:
    """Says which process this is."""
    return str(os.getpid())


@server.tool()
def variable(name: str) -> str:
    """Says what an environment variable holds."""
    return os.environ.get(name, "none")


@server.tool()
def sleep() -> str:
    """Answers after a minute."""
    threading.Event().wait(60)
    return "awake"


if __name__ == "__main__":
    if "--late" in sys.argv:
        threading.Event().wait(600)
    if "--port" in sys.argv:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[-1]))
    else:
        server.run()
