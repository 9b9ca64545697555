"""A session of an AgentGym server.

    POST /create {}             -> {"id": 3}, or 3 alone (WebShop), which calls the fields of a request otherwise
    POST /reset {id, data_idx}  -> {"observation": ...}; WebShop {env_idx, session_id} -> ["...", null]
    POST /step {id, action}     -> {"observation", "reward", "done"}; WebShop "state" in place of "observation"
    POST /close {id}            -> anything; servers without it keep the session

An error is an answer {"error": ...}, whatever its status.
"""

from __future__ import annotations

import time
from typing import Any

PAUSE_S = 0.5  # between tries to get a session of a server that is full or starts
NAMES = {"id": "env_idx", "data_idx": "session_id"}
"""What WebShop's server calls the fields of a request."""


class Refused(RuntimeError):
    """The server answered with an error."""


class ConnectionFailed(ConnectionError):
    """The server cannot be reached, broke off, or took too long to answer."""


class Session:
    """Opened at the first reset, and anew where the server does not know it any more."""

    def __init__(self, server: str, timeout_s: float, patience_s: float):
        import httpx2

        self._http = httpx2.Client(base_url=server.rstrip("/"), timeout=timeout_s)
        self._patience_s = patience_s
        self._id: int | str | None = None
        self._names: dict[str, str] = {}

    def reset(self, number: int) -> dict[str, Any]:
        """What the server says of task `number` at its beginning. Raises Refused, ConnectionFailed."""
        if self._id is not None:
            try:
                return self.post("reset", data_idx=number)
            except (Refused, ConnectionFailed):  # a server that was started anew does not know the session
                self._leave()
        self._enter()
        return self.post("reset", data_idx=number)

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """The answer as a map. Raises Refused, ConnectionFailed."""
        import httpx2

        body = fields if self._id is None else {"id": self._id, **fields}
        try:
            answer = self._http.post(f"/{path}", json={self._names.get(name, name): body[name] for name in body})
            said = answer.json()
        except httpx2.HTTPError as error:
            raise ConnectionFailed(f"no answer to /{path}: {type(error).__name__}: {error}") from None
        except ValueError:
            raise Refused(f"the answer to /{path} is no JSON, status {answer.status_code}") from None
        if answer.status_code != 200 or (isinstance(said, dict) and "error" in said):
            raise Refused(f"/{path} was answered with an error, status {answer.status_code}: {str(said)[:200]}")
        if isinstance(said, list):  # WebShop's reset
            return {"observation": said[0]}
        return said if isinstance(said, dict) else {"env_idx": said}

    def close(self) -> None:
        self._leave()
        self._http.close()

    def _enter(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while self._id is None:
            try:
                made = self.post("create")
                self._names = {} if "id" in made else NAMES
                self._id = made["id"] if "id" in made else made["env_idx"]
            except (Refused, ConnectionFailed):
                if time.monotonic() + PAUSE_S > deadline:
                    raise
                time.sleep(PAUSE_S)

    def _leave(self) -> None:
        if self._id is None:
            return
        try:
            self.post("close")
        except (Refused, ConnectionFailed):  # it knows no /close, or is gone, and its session with it
            pass
        self._id = None
