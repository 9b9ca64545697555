"""A TCP proxy that misbehaves: cuts connections in the middle of what they carry, or carries nothing for a while."""

from __future__ import annotations

import socket
import struct
import threading

from support.waiting import deadline_s

TICK_S = 0.05
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST, and what was not sent is lost
CHUNK = 16384


class Proxy:
    """Forwards from `port` to a port of this machine. All methods may be called from any thread."""

    def __init__(self, target: int):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TICK_S)
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[Pair] = set()
        self._budget: dict[str, int] = {}
        self._ended = threading.Event()
        self.cuts = self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut_after(self, count: int, way: str = "up") -> None:
        """Cuts the connection that carries the `count`-th byte from now on, `up` to the service or `down` from it."""
        with self._lock:
            self._budget[way] = count

    def hole(self) -> None:
        """From now on the connections that there are carry nothing, and say nothing."""
        for pair in self._all():
            pair.open.clear()

    def resume(self) -> None:
        """What was held arrives, late."""
        for pair in self._all():
            pair.open.set()

    def drop(self) -> None:
        """What was held is lost with its connections."""
        for pair in self._all():
            pair.cut()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()
        self.drop()

    def allowed(self, way: str, size: int) -> int:
        """How many of `size` bytes may pass; fewer than that: it is to be cut."""
        with self._lock:
            left = self._budget.get(way)
            if left is None:
                return size
            if size < left:
                self._budget[way] -= size
                return size
            del self._budget[way]
            self.cuts += 1
            return left - 1

    def forget(self, pair: Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)

    def _all(self) -> list[Pair]:
        with self._lock:
            return list(self._pairs)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=deadline_s(5))
            except OSError:
                near.close()
                continue
            pair = Pair(self, near, far)
            with self._lock:
                self._pairs.add(pair)
                self.connections += 1
            pair.start()


class Pair:
    """One connection through the proxy, with a thread for each way."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket):
        self._proxy, self._near, self._far = proxy, near, far
        self.open = threading.Event()
        self.open.set()
        self._over = threading.Event()

    def start(self) -> None:
        for way, source, sink in (("up", self._near, self._far), ("down", self._far, self._near)):
            source.settimeout(TICK_S)
            threading.Thread(target=self._pump, args=(way, source, sink), daemon=True).start()

    def cut(self) -> None:
        self._over.set()
        self._proxy.forget(self)
        for end in (self._near, self._far):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
            except OSError:
                continue  # the other way has closed it

    def _pump(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while not self._over.is_set():
                if not self.open.wait(TICK_S):
                    continue
                try:
                    data = source.recv(CHUNK)
                except TimeoutError:
                    continue
                while not self.open.wait(TICK_S) and not self._over.is_set():
                    continue
                may = self._proxy.allowed(way, len(data))
                if not data or self._over.is_set():
                    break
                self._send(sink, data[:may])
                if may < len(data):
                    break
        except OSError:
            pass  # an end hung up
        self.cut()

    def _send(self, sink: socket.socket, data: bytes) -> None:
        while data and not self._over.is_set():
            try:
                data = data[sink.send(data) :]
            except TimeoutError:
                continue
