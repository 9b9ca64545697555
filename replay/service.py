"""The replay service: one thread that stores rows, answers requests and owns the two ROUTER sockets and the spool.

    producers --rows--> ingest ROUTER --one transaction a drain--> LMDB, groups --> acks
    consumers, controller --requests--> serve ROUTER --> desk (claims wait there) --> replies

Only that thread touches sockets, spool and table, so nothing here takes a lock.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import zmq

from protocols import metrics
from protocols.errors import SettingError, WireError
from protocols.wire import CLOSE, SCHEMA, pack, split, unpack
from replay.config import WINDOW_BATCHES, WINDOW_ROWS, Endpoints, ReplaySettings
from replay.desk import Desk
from replay.groups import Draft
from replay.spool import FULL
from replay.store import Store

log = logging.getLogger("redraft.replay")
DRAIN_MESSAGES = 64  # the most that one transaction stores: bounds memory and the wait of the serve socket
EXPORT_S = 1.0


class _Refused(Exception):
    def __init__(self, reason: str, detail: str, batch: int = -1):
        self.reason, self.batch = reason, batch
        super().__init__(detail)


class Service:
    """Replay for one run. `start` raises SettingError when an endpoint or the folder cannot be used.

    Use it as a context manager, or call `start`, then `join` (which raises what ended the thread) or `stop`.
    """

    def __init__(self, folder: str | Path, endpoints: Endpoints, settings: ReplaySettings, run_id: str):
        self._folder, self._endpoints, self._settings, self._run_id = Path(folder), endpoints, settings, run_id
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        self._store = Store(self._folder, self._run_id, self._settings)
        self._context = zmq.Context()
        try:
            self._ingest = _bind(self._context, self._endpoints.ingest)
            self._serve = _bind(self._context, self._endpoints.serve)
        except SettingError:
            self._context.destroy(linger=0)
            self._store.close()
            raise
        self._desk = Desk(self._store, self._reply)
        self._woken, self._waker = socket.socketpair()
        self._thread.start()

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
            self._context.destroy(linger=200)
            self._store.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        for waited in (self._ingest, self._serve, self._woken):
            poller.register(waited, zmq.POLLIN)
        exported = 0.0
        while True:
            ready = dict(poller.poll(self._desk.wait_s() * 1000))
            if self._woken.fileno() in ready:
                return
            if self._ingest in ready:
                self._take_rows()
            if self._serve in ready:
                for frames in _drain(self._serve, DRAIN_MESSAGES):
                    self._desk.receive(frames)
            self._desk.tick()
            if time.monotonic() - exported > EXPORT_S:
                self._store.export()
                exported = time.monotonic()

    def _reply(self, identity: bytes, frames: list[bytes]) -> None:
        self._serve.send_multipart([identity, *frames])

    def _take_rows(self) -> None:
        """Stores the waiting messages in one transaction, then acknowledges them; where there is no room, neither."""
        batches: dict[bytes, list[int]] = {}
        rows = []
        # In a full spool one message may fit where many do not.
        for identity, *frames in _drain(self._ingest, 1 if self._store.full else DRAIN_MESSAGES):
            try:
                batch, of_batch = _parse(frames)
            except _Refused as refusal:
                self._store.refuse(refusal.reason, str(refusal))
                self._answer(identity, {"kind": "refused", "batch": refusal.batch, "reason": refusal.reason})
                continue
            batches.setdefault(identity, []).append(batch)
            rows.extend(of_batch)
        if not batches:
            return
        try:
            outcomes = self._store.change(lambda draft: _store_rows(draft, rows), may_grow=False)
        except FULL as error:
            self._store.note_full(error)
            for identity in batches:
                self._answer(identity, {"kind": "ack", "batches": [], "room": 0})
            return
        for outcome in set(outcomes):
            count = outcomes.count(outcome)
            self._store.outcomes[outcome] += count
            metrics.REPLAY_ROWS.labels(outcome=outcome).inc(count)
        for identity, done in batches.items():
            self._answer(identity, {"kind": "ack", "batches": done, "room": WINDOW_ROWS})

    def _answer(self, identity: bytes, fields: dict) -> None:
        self._ingest.send_multipart([identity, pack({"schema": SCHEMA, **fields})])


def _store_rows(draft: Draft, rows: list[tuple[np.void, bytes]]) -> list[str]:
    return [draft.store(row, record) for row, record in rows]


def _parse(frames: list[bytes]) -> tuple[int, list[tuple[np.void, bytes]]]:
    """The batch number and rows of one message. Raises _Refused."""
    if len(frames) != 3:
        raise _Refused("frames", f"{len(frames)} frames where 3 belong")
    try:
        header = unpack(frames[0])
    except WireError as error:
        raise _Refused("header", str(error)) from None
    batch, count = header.get("batch"), header.get("count")
    if header.get("kind") != "rows" or type(batch) is not int or not 0 <= batch < 2**63 or type(count) is not int:
        raise _Refused("header", f"a header of other fields: {str(header)[:200]}")
    try:
        rows = split(frames[1], frames[2])
    except WireError as error:
        raise _Refused("checksum", str(error), batch) from None
    if len(rows) != count:
        raise _Refused("header", f"{count} rows announced, {len(rows)} sent", batch)
    for row, _ in rows:
        if row["lease"] < 0 or row["turn"] < CLOSE or row["turns"] < 0 or row["size"] == 0:
            raise _Refused("row", f"a row with impossible values: {row}", batch)
    return batch, rows


def _drain(router: zmq.Socket, most: int) -> list[list[bytes]]:
    messages = []
    while len(messages) < most:
        try:
            messages.append(router.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
    return messages


def _bind(context: zmq.Context, endpoint: str) -> zmq.Socket:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a client that reconnects takes its name over from its dead connection
    router.setsockopt(zmq.RCVHWM, WINDOW_BATCHES)
    router.setsockopt(zmq.SNDHWM, 0)
    router.setsockopt(zmq.LINGER, 0)
    if endpoint.startswith("ipc://"):
        Path(endpoint[len("ipc://") :]).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        problem = "port in use" if error.errno == zmq.EADDRINUSE else str(error)
        raise SettingError("replay.endpoint", f"{endpoint}: {problem}", "Choose another endpoint") from None
    return router
