"""Ports of this machine that nobody uses, for what must be told its port."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from replay.config import Endpoints


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each another one."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in taken]


def free_port() -> int:
    return free_ports(1)[0]


def tcp_endpoints() -> Endpoints:
    """Where a replay service can listen on loopback."""
    return Endpoints(*(f"tcp://127.0.0.1:{port}" for port in free_ports(2)))
