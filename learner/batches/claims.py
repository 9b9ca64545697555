"""Claims live as long as replay hears their consumer: this has it hear of it while a step, or a wait, takes long."""

from __future__ import annotations

import threading
from types import TracebackType

from replay.client import Client

OFTEN = 4  # times within the time after which a silent consumer loses its claims
AGAIN_S = 1.0  # after a service that did not answer


class Heard:
    """A context in which `client`, which is its own to use and to close, asks each service for a word in time."""

    def __init__(self, client: Client):
        self._client, self._over = client, threading.Event()
        self._thread = threading.Thread(target=self._ask, name="claims", daemon=True)

    def __enter__(self) -> Heard:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        wait_s = 0.0
        while not self._over.wait(wait_s):
            lasts_s = self._client.heard()
            wait_s = AGAIN_S if lasts_s is None else lasts_s / OFTEN
