"""Link: requests to one replay service, sent again until they are answered."""

from __future__ import annotations

import secrets
import threading
import time

import zmq

from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.wire import SCHEMA, pack, unpack
from replay.config import HEARTBEAT_S, QUEUED, RESEND_S, ClientKeys
from replay.keys import secure_client

Reply = tuple[dict, bytes, memoryview]  # header, index, blob


class Link:
    """One request at a time; safe to use from any thread."""

    def __init__(self, endpoint: str, name: str, keys: ClientKeys | None, timeout_s: float):
        self._endpoint, self._name, self._keys, self._timeout_s = endpoint, name, keys, timeout_s
        self._lock = threading.Lock()
        self._request = 0
        # A context of its own would wait for ever when it is collected before its socket is closed.
        self._dealer = connected(zmq.Context.instance(), endpoint, name, keys)

    def ask(self, op: str, wait_s: float = 0.0, **fields) -> Reply:
        """The reply to one request, which replay may answer after `wait_s`.

        Raises DeadlineError when no answer came, RedraftError with what replay says against the request.
        """
        with self._lock:
            self._request += 1
            began = time.monotonic()
            deadline = began + wait_s + self._timeout_s
            while (now := time.monotonic()) < deadline:
                left_s = max(began + wait_s - now, 0.0)
                message = {"schema": SCHEMA, "id": self._request, "op": op, "wait_s": left_s, **fields}
                reply = self._try(pack(message), min(deadline, now + min(RESEND_S, self._timeout_s / 3)))
                if reply is not None:
                    break
            else:
                waiter, culprit = f"client {self._name}", f"replay at {self._endpoint}"
                detail = f"no answer to {op!r}{hint(self._endpoint, self._keys)}"
                raise DeadlineError(waiter, culprit, wait_s + self._timeout_s, detail)
        if "error" in reply[0]:
            raise RedraftError(f"replay at {self._endpoint}: {reply[0]['error']}")
        return reply

    def close(self) -> None:
        with self._lock:
            self._dealer.close()

    def _try(self, request: bytes, until: float) -> Reply | None:
        """Sends once and waits for the reply of this request; replies to earlier ones are ignored."""
        if not self._dealer.poll(_ms_until(until), zmq.POLLOUT):
            return None
        try:
            self._dealer.send(request, zmq.NOBLOCK)
        except zmq.Again:  # the connection has gone since
            return None
        while self._dealer.poll(_ms_until(until), zmq.POLLIN):
            header, *rest = self._dealer.recv_multipart(copy=False)
            fields = unpack(header.bytes)
            if fields["id"] == self._request:
                return (fields, rest[0].bytes, rest[1].buffer) if len(rest) == 2 else (fields, b"", memoryview(b""))
        return None


def connected(context: zmq.Context, endpoint: str, name: str, keys: ClientKeys | None) -> zmq.Socket:
    """A DEALER of the client `name`. Raises SettingError when the endpoint cannot be used."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, f"{name}/{secrets.token_hex(4)}".encode())
    dealer.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues while replay is away: it is sent again
    dealer.setsockopt(zmq.SNDHWM, QUEUED)  # what is sent again to a hung service does not pile up
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    dealer.setsockopt(zmq.LINGER, 0)
    try:
        keep_alive(dealer, endpoint)
        if keys is not None and endpoint.startswith("tcp://"):
            secure_client(dealer, keys)
        dealer.connect(endpoint)
    except zmq.ZMQError as error:
        dealer.close()
        cure = "Give ipc://PATH or tcp://HOST:PORT"
        raise SettingError("replay.endpoint", f"{endpoint}: {error}", cure) from None
    return dealer


def keep_alive(socket: zmq.Socket, endpoint: str) -> None:
    """Has ZeroMQ notice a lost tcp connection and make a new one, long before the system gives up on it."""
    if endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_S * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(4 * HEARTBEAT_S * 1000))


def hint(endpoint: str, keys: ClientKeys | None) -> str:
    """What else may be wrong: a service does not answer peers whose keys it does not know."""
    if not endpoint.startswith("tcp://"):
        return ""
    return "; or it does not know these keys" if keys else "; or it asks for keys, and none were given"


def _ms_until(moment: float) -> int:
    return max(int((moment - time.monotonic()) * 1000), 0)
