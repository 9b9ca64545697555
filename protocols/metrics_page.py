"""Where a process serves its metrics: to its own machine alone, or to all that reach it and have the run's token."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from prometheus_client import MetricsHandler

from protocols.errors import SettingError

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
TOKEN = "metrics.token"
"""The name of a file that holds a token, in a run folder or among keys."""
WORDS = re.compile(r"[\w.~+/=-]{16,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listen:
    """At which address, and the token that is asked for there; "" on the machine itself, where none is."""

    host: str = LOOPBACK
    token: str = field(default="", repr=False)


REQUEST_S = 10.0
"""Longest wait for a request, or a part of it: no peer is to hold a thread for longer without a word."""


class Page(MetricsHandler):
    """Answers with this process's metrics who has the token, as `Authorization: Bearer TOKEN`."""

    listen = Listen()
    timeout = REQUEST_S

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode(errors="replace")
        if not self.listen.token or secrets.compare_digest(given, f"Bearer {self.listen.token}".encode()):
            self.answer()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self) -> None:
        super().do_GET()


def serve(port: int, setting: str, listen: Listen, page: type[Page] = Page) -> int:
    """Serves such pages in threads, on `port` (0 = any free one); returns the port.

    Raises SettingError, naming `setting`, when the port is taken.
    """
    try:
        server = ThreadingHTTPServer((listen.host, port), type("Here", (page,), {"listen": listen}))
    except OSError as error:
        raise SettingError(setting, f"port {port} cannot be used: {error.strerror}", "Choose another, or 0") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port


def made(folder: Path) -> str:
    """The token in `folder`, made where there is none. Raises OSError."""
    path, aside = folder / TOKEN, folder / f".{TOKEN}.{secrets.token_hex(4)}"
    if not path.exists():
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with contextlib.suppress(FileExistsError):  # another command was faster: a file that is there is whole
            os.link(aside, path)
        aside.unlink()
    return read(path, "metrics.token")


def read(path: Path, setting: str) -> str:
    """The token in a file. Raises SettingError, naming `setting`, where it is none that can be asked for."""
    cure = f"Make one with `openssl rand -hex 32 > {path}`"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingError(setting, f"{path} cannot be read: {problem}", cure) from None
    if not WORDS.fullmatch(token):
        raise SettingError(setting, f"{path} holds no token: 16 letters and digits or more, in one line", cure)
    return token
