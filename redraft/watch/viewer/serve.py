"""Serves the viewer until Ctrl-C: on loopback for whoever is on this machine, elsewhere for who has the token."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket

from protocols.errors import SettingError
from redraft.run import Run


def serve(run: Run, host: str, port: int) -> None:
    """Prints the address and answers until it is interrupted. Raises SettingError where it cannot listen there."""
    import uvicorn

    from redraft.watch.viewer.app import application

    listening, loopback = listen(host, port)
    token = None if loopback else secrets.token_urlsafe(32)
    print(address(host, listening.getsockname()[1], token), flush=True)
    config = uvicorn.Config(
        application(run, token, host),
        access_log=False,  # a log of addresses would hold the token
        log_config=None,  # its own would close handlers that others have made
        log_level="warning",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> tuple[socket.socket, bool]:
    """A listening socket, and whether only this machine reaches it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        cure = "Name an address of this machine, and a port that is free (0 finds one)"
        raise SettingError("--host", f"nothing can listen at {host}, port {port}: {error}", cure) from None
    return listening, ipaddress.ip_address(address[0]).is_loopback


def address(host: str, port: int, token: str | None, scheme: str = "http") -> str:
    """What a person opens."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{port}/" + (f"?token={token}" if token else "")
