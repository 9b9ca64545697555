"""The replay service: one thread that stores rows, answers requests and owns the two ROUTER sockets and the spool.

    producers --rows--> ingest ROUTER --one transaction a drain--> LMDB, groups --> acks
    consumers, controller --requests--> serve ROUTER --> request_handler (claims wait there) --> replies

Only that thread touches sockets, spool and table, so nothing here takes a lock.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

import zmq

from protocols import metrics
from protocols.errors import SettingError, WireError
from protocols.wire import CLOSE, ENTRY, SCHEMA, Packed, Row, pack, shown, split, unpack
from replay.client.link import keep_alive
from replay.config import MAX_MESSAGE_BYTES, QUEUED, Endpoints, ReplaySettings
from replay.disk.spool import FULL
from replay.keys import Gate, Watch
from replay.server.request_handler import RequestHandler
from replay.server.store import Store

log = logging.getLogger("redraft.replay")
# The most messages that one transaction stores. Few, so that claims are served as fast as rows come and what is written
# is still in the processor's cache; with durability: power many, which share a sync.
DRAIN_MESSAGES = {"process": 4, "power": 32}
GATHER_ROWS, GATHER_S = 64, 0.003  # with durability: power, a sync waits for so many rows or so long
MAX_HEADER_BYTES = 1 << 12
SERVED = 64  # requests between two looks at the rows that came
COLLECT = 50_000  # allocations between two runs of Python's garbage collector: the table is large, and has no cycles
EXPORT_S = 1.0


class _Refused(Exception):
    def __init__(self, reason: str, detail: str, batch: int = -1):
        self.reason, self.batch = reason, batch
        super().__init__(detail)


class Service:
    """Replay for one run. `start` raises SettingError when an endpoint, the folder or the keys cannot be used.

    Endpoints over tcp speak CURVE with the keys in `keys` (see replay.keys), unless the settings say otherwise.
    Use it as a context manager, or call `start`, then `join` (which raises what ended the thread) or `stop`.
    """

    def __init__(
        self, folder: str | Path, endpoints: Endpoints, settings: ReplaySettings, run_id: str, keys: Path | None = None
    ):
        self._folder, self._endpoints, self._settings, self._run_id = Path(folder), endpoints, settings, run_id
        self._keys = keys
        self._gate: Gate | None = None
        self._held: set[bytes] = set()  # producers that were told to hold back
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        self._store = Store(self._folder, self._run_id, self._settings)
        self._context = zmq.Context()
        try:
            self._ingest, self._serve = self._bind(self._endpoints.ingest), self._bind(self._endpoints.serve)
        except SettingError:
            self._end()
            raise
        self._watches = [Watch(self._ingest), Watch(self._serve)]
        self._handler = RequestHandler(self._store, self._reply)
        self._woken, self._waker = socket.socketpair()
        gc.set_threshold(COLLECT)
        self._thread.start()

    def _bind(self, endpoint: str) -> zmq.Socket:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # who reconnects takes its name over from its dead connection
        router.setsockopt(zmq.RCVHWM, QUEUED)
        router.setsockopt(zmq.MAXMSGSIZE, 2 * MAX_MESSAGE_BYTES)  # a peer that sends more is cut off before it is read
        router.setsockopt(zmq.SNDHWM, 0)
        router.setsockopt(zmq.LINGER, 0)
        if endpoint.startswith("ipc://"):
            _own(Path(endpoint.removeprefix("ipc://")).parent)
        keep_alive(router, endpoint)
        if endpoint.startswith("tcp://") and self._settings.curve:
            self._secure(router)
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            problem = "port in use" if error.errno == zmq.EADDRINUSE else str(error)
            raise SettingError("replay.endpoint", f"{endpoint}: {problem}", "Choose another endpoint") from None
        return router

    def _secure(self, router: zmq.Socket) -> None:
        if self._keys is None:
            cure = "Make them with `redraft keys new FOLDER`; replay.curve=false opens the endpoint to anyone"
            raise SettingError("replay.keys", f"{self._endpoints.ingest} uses CURVE, and no keys were given", cure)
        if self._gate is None:
            self._gate = Gate(self._context, self._keys)
        self._gate.secure(router)

    def stop(self) -> None:
        """Ends the thread after what it is doing; rows that were not acknowledged are sent again by their producers."""
        self._waker.send(b"s")
        self.join()

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:
            log.exception("the replay service ended")
            self._error = error
        finally:
            for watch in self._watches:
                watch.close()
            self._end()

    def _end(self) -> None:
        if self._gate is not None:
            self._gate.stop()
        self._context.destroy(linger=200)
        self._store.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        for waited in (self._ingest, self._serve, self._woken, *(watch.socket for watch in self._watches)):
            poller.register(waited, zmq.POLLIN)
        exported, idle = time.monotonic(), 0.0
        while True:
            began = time.monotonic()
            ready = dict(poller.poll(int(self._handler.wait_s() * 1000)))
            now = time.monotonic()
            idle += now - began
            if self._woken.fileno() in ready:
                return
            if self._ingest in ready:
                self._take_rows()
            if self._serve in ready:
                for frames in _drain(self._serve, SERVED):
                    self._handler.receive([frame.bytes for frame in frames])
            for watch in self._watches:
                if watch.socket in ready:
                    for refused in watch.drain():
                        self._store.refuse("peer", refused)
            self._handler.tick()
            self._let_go()
            if now - exported > EXPORT_S:
                self._store.export()
                metrics.REPLAY_IDLE.set(idle / (now - exported))
                metrics.tell_disk(self._folder)
                exported, idle = now, 0.0

    def _reply(self, identity: bytes, frames: list[bytes]) -> None:
        self._serve.send_multipart([identity, *frames], copy=False)

    def _take_rows(self) -> None:
        """Stores the waiting messages in one transaction, then acknowledges them; without room it does neither."""
        batches: dict[bytes, list[int]] = {}
        rows: list[tuple[Row, Packed]] = []
        for identity, *frames in self._arrived():
            try:
                batch, of_batch = _parse(frames)
            except _Refused as refusal:
                self._store.refuse(refusal.reason, str(refusal))
                fields = {"kind": "refused", "batch": refusal.batch, "reason": refusal.reason}
                self._answer(identity.bytes, fields)
                continue
            batches.setdefault(identity.bytes, []).extend(batch)
            rows += of_batch
        try:
            if rows:
                self._store_rows(rows)
        except FULL as error:
            self._store.note_full(error)
            batches = dict.fromkeys(batches, [])
        room = self._store.room
        for identity, done in batches.items():
            self._answer(identity, {"kind": "ack", "batches": done, "room": room})
        if not room:
            self._held.update(batches)

    def _let_go(self) -> None:
        """Tells the producers that were held back when there is room again."""
        if self._held and self._store.room:
            for identity in self._held:
                self._answer(identity, {"kind": "ack", "batches": [], "room": self._store.room})
            self._held.clear()

    def _arrived(self) -> list[list[zmq.Frame]]:
        """The messages that wait. In a full spool one may fit where many do not; before a sync more are waited for."""
        if self._store.full:
            return _drain(self._ingest, 1)
        most = DRAIN_MESSAGES[self._settings.durability]
        messages = _drain(self._ingest, most)
        if self._settings.durability == "power":
            until = time.monotonic() + GATHER_S
            while sum(len(frames[2]) for frames in messages if len(frames) > 2) < GATHER_ROWS * ENTRY.size:
                left_s = until - time.monotonic()
                if left_s <= 0 or not self._ingest.poll(int(left_s * 1000)):
                    break
                messages += _drain(self._ingest, most)
        return messages

    def _store_rows(self, rows: list[tuple[Row, Packed]]) -> None:
        outcomes = Counter(
            self._store.change(lambda draft: [draft.store(row, packed) for row, packed in rows], may_grow=False)
        )
        metrics.REPLAY_ROWS_PER_COMMIT.observe(len(rows))
        self._store.count_rows(outcomes)

    def _answer(self, identity: bytes, fields: dict) -> None:
        self._ingest.send_multipart([identity, pack({"schema": SCHEMA, **fields})])


def _own(folder: Path) -> None:
    """Makes the folder of an ipc endpoint; its permissions are what keeps others out."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        cure = f"Choose a folder of your own, or `chmod 700 {folder}`"
        raise SettingError("replay.endpoint", f"other users may enter {folder}, where the ipc endpoints would be", cure)


def _parse(frames: list[zmq.Frame]) -> tuple[list[int], list[tuple[Row, Packed]]]:
    """The batch number (none in a question for room) and the rows of one message. Raises _Refused."""
    if sum(map(len, frames)) > MAX_MESSAGE_BYTES:
        raise _Refused("size", f"a message of more than {MAX_MESSAGE_BYTES} bytes")
    try:
        header = unpack(frames[0].bytes if frames and len(frames[0]) <= MAX_HEADER_BYTES else b"")
    except WireError as error:
        raise _Refused("header", str(error)) from None
    kind, batch, count = header.get("kind"), header.get("batch"), header.get("count")
    if kind == "room" and len(frames) == 1:
        return [], []
    if kind != "rows" or type(batch) is not int or not 0 <= batch < 2**63 or type(count) is not int:
        raise _Refused("header", f"unexpected fields in the header: {shown(header)}")
    if len(frames) != 3:
        raise _Refused("frames", f"expected 3 frames, got {len(frames)}", batch)
    try:
        rows = split(frames[1].bytes, frames[2].buffer)
    except WireError as error:
        raise _Refused("checksum", str(error), batch) from None
    if len(rows) != count:
        raise _Refused("header", f"expected {count} rows, got {len(rows)}", batch)
    for row, _ in rows:
        if row.lease < 0 or row.turn < CLOSE or row.turns < 0:
            raise _Refused("row", f"a row has values out of range: {row}", batch)
    return [batch], rows


def _drain(router: zmq.Socket, most: int) -> list[list[zmq.Frame]]:
    messages = []
    while len(messages) < most:
        try:
            messages.append(router.recv_multipart(zmq.NOBLOCK, copy=False))
        except zmq.Again:
            break
    return messages
