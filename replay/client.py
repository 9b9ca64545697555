"""The two ends that others hold: Producer sends rows until they are acknowledged, Client asks for groups."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import zmq

from protocols import metrics
from protocols.errors import DeadlineError, RedraftError, WireError
from protocols.turns import Close, Group, Turn
from protocols.wire import SCHEMA, join, pack, row_of, split, unpack, whole_group
from replay.config import BATCH_ROWS, LINGER_S, RESEND_S, WINDOW_BATCHES, WINDOW_ROWS, Endpoints

log = logging.getLogger("redraft.replay")


@dataclass(slots=True)
class _Batch:
    """Rows sent together, kept until they are acknowledged."""

    number: int
    frames: list[bytes]
    rows: int
    resend_at: float = 0.0


class Producer:
    """Streams rows to replay; safe to use from any thread. Rows are kept and sent again until acknowledged.

    `add` never blocks: a producer that awaits `room` before it plays stays within the credit window.
    """

    def __init__(self, endpoints: Endpoints, name: str):
        self._endpoint, self._name = endpoints.ingest, name
        self._changed = threading.Condition()  # guards what follows
        self._pending: deque[tuple[np.void, bytes, Future | None]] = deque()
        self._unacknowledged = 0  # rows added and not yet acknowledged, pending ones included
        self._window = WINDOW_ROWS
        self._waiters: list[Future] = []
        self._flush_now = self._closing = False
        # The rest belongs to the io thread: a ZeroMQ socket is used by one thread only.
        self._batches: dict[int, _Batch] = {}
        self._closes: deque[tuple[int, Future]] = deque()  # batch number and future, in order
        self._sent = 0
        self._linger_until = 0.0
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"replay-{name}", daemon=True)
        self._thread.start()

    def add(self, item: Turn | Close, order: int, spread: float = 0.0) -> Future[None] | None:
        """Takes a turn or close row of the lease whose place in time is `order`.

        For a close row returns a future that is done when replay has stored it and all that was added before it; it
        fails with WireError when replay refuses its batch. Raises WireError when the turn cannot be encoded,
        RedraftError when the producer is closed.
        """
        row, record = row_of(item, order, spread)
        done = Future() if isinstance(item, Close) else None
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise RedraftError(f"the replay producer {self._name} is closed")
            self._pending.append((row, record, done))
            self._unacknowledged += 1
            waiting = len(self._pending)
        if waiting == 1 or waiting % BATCH_ROWS == 0:
            self._wake()
        return done

    async def room(self, timeout_s: float) -> None:
        """Returns when a row may be added within the credit window. Raises DeadlineError, naming replay."""
        deadline = time.monotonic() + timeout_s
        stalled = False
        while True:
            with self._changed:
                if self._unacknowledged < self._window:
                    return
                waiter = Future()
                self._waiters.append(waiter)
            if not stalled:
                metrics.REPLAY_STALLS.inc()
                stalled = True
            try:
                await asyncio.wait_for(asyncio.wrap_future(waiter), max(deadline - time.monotonic(), 0))
            except TimeoutError:
                raise self._late(timeout_s) from None

    def flush(self, timeout_s: float) -> None:
        """Returns when all that was added is acknowledged. Raises DeadlineError, naming replay."""
        with self._changed:
            self._flush_now = True
            self._wake()
            done = self._changed.wait_for(lambda: not self._unacknowledged, timeout_s)
            self._flush_now = False
        if not done:
            raise self._late(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Flushes, then ends the io thread in any case. Raises DeadlineError when rows were left."""
        if not self._thread.is_alive():
            return
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._closing = True
            self._wake()
            self._thread.join()
            self._waker.close()

    @property
    def alive(self) -> bool:
        """Whether rows are still being sent; False after `close`, or when its thread has failed."""
        return not self._closing

    def _late(self, timeout_s: float) -> DeadlineError:
        detail = f"{self._unacknowledged} rows are not acknowledged, {self._window} may be"
        return DeadlineError(f"producer {self._name}", f"replay at {self._endpoint}", timeout_s, detail)

    def _wake(self) -> None:
        try:
            self._waker.send(b"w")
        except OSError:
            return  # it has wakes enough, or has ended: one more changes nothing

    def _run(self) -> None:
        context = zmq.Context()
        try:
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.IDENTITY, f"{self._name}/{secrets.token_hex(4)}".encode())
                dealer.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues while replay is away: it is sent again
                dealer.setsockopt(zmq.SNDHWM, WINDOW_BATCHES)  # resends to a hung service do not pile up
                dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(self._endpoint)
                self._loop(dealer)
        except Exception:
            log.exception("the io thread of replay producer %s ended", self._name)
        finally:
            context.term()
            self._woken.close()
            self._end()

    def _loop(self, dealer: zmq.Socket) -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll(self._wait_ms()))
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            if dealer in ready:
                self._receive(dealer)
            while (batch := self._next_batch()) is not None:
                self._batches[batch.number] = batch
                self._send(dealer, batch)
            now = time.monotonic()
            for batch in self._batches.values():
                if batch.resend_at <= now:
                    self._send(dealer, batch)

    def _wait_ms(self) -> float:
        due = [batch.resend_at for batch in self._batches.values()]
        with self._changed:
            if self._pending and self._may_send():
                due.append(self._linger_until)
        if not due:
            return 1000.0
        return min(max(min(due) - time.monotonic(), 0.0), 1.0) * 1000 + 1  # whole milliseconds, rounded up

    def _may_send(self) -> bool:
        """Whether the window has room; without any batch out, one goes to ask for room."""
        in_flight = self._unacknowledged - len(self._pending)
        return in_flight < self._window or not self._batches

    def _next_batch(self) -> _Batch | None:
        """The next batch, if it is full or its first row has waited long enough."""
        now = time.monotonic()
        with self._changed:
            if not self._pending:
                self._linger_until = 0.0
                return None
            if not self._linger_until:
                self._linger_until = now + LINGER_S
            due = len(self._pending) >= BATCH_ROWS or self._flush_now or now >= self._linger_until
            if not due or not self._may_send():
                return None
            taken = [self._pending.popleft() for _ in range(min(BATCH_ROWS, len(self._pending)))]
            self._linger_until = 0.0
        self._sent += 1
        header = pack({"schema": SCHEMA, "kind": "rows", "batch": self._sent, "count": len(taken)})
        frames = [header, *join([(row, record) for row, record, _ in taken])]
        self._closes.extend((self._sent, done) for _, _, done in taken if done is not None)
        return _Batch(self._sent, frames, len(taken))

    def _send(self, dealer: zmq.Socket, batch: _Batch) -> None:
        batch.resend_at = time.monotonic() + RESEND_S
        try:
            dealer.send_multipart(batch.frames, zmq.NOBLOCK)
        except zmq.Again:
            batch.resend_at = time.monotonic() + RESEND_S / 10  # not connected: soon again

    def _receive(self, dealer: zmq.Socket) -> None:
        while True:
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = unpack(frames[0])
            except WireError as error:
                log.error("replay producer %s got an answer it cannot read: %s", self._name, error)
                continue
            if message["kind"] == "refused":
                log.error("replay refused batch %s of %s: %s", message["batch"], self._name, message["reason"])
                self._settle([message["batch"]], self._window, WireError(f"replay refused it: {message['reason']}"))
            else:
                self._settle(message["batches"], message["room"], None)

    def _settle(self, numbers: list[int], window: int, error: WireError | None) -> None:
        """Drops answered batches. A close is done once no batch up to its own is out: resends come out of order."""
        done = [batch for number in numbers if (batch := self._batches.pop(number, None)) is not None]
        if error is not None:
            refused = [close for number, close in self._closes if number in numbers]
            self._closes = deque((number, close) for number, close in self._closes if number not in numbers)
            for close in refused:
                _resolve(close, error)
        first_out = next(iter(self._batches), self._sent + 1)
        while self._closes and self._closes[0][0] < first_out:
            _resolve(self._closes.popleft()[1], None)
        with self._changed:
            self._unacknowledged -= sum(batch.rows for batch in done)
            self._window = window
            waiters: list[Future] = []
            if self._unacknowledged < window:
                waiters, self._waiters = self._waiters, waiters
            self._changed.notify_all()
        for waiter in waiters:
            _resolve(waiter, None)

    def _end(self) -> None:
        """Fails what can no longer be acknowledged."""
        with self._changed:
            self._closing = True
            left = [done for _, _, done in self._pending if done is not None]
            left += [close for _, close in self._closes] + self._waiters
            self._waiters = []
        for future in left:
            _resolve(future, RedraftError(f"the replay producer {self._name} was closed before replay acknowledged"))


def _resolve(future: Future, error: Exception | None) -> None:
    if not future.set_running_or_notify_cancel():
        return  # whoever waited for it has given up
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Claim:
    """Groups claimed, or none and why: "groups" (too few are ready) or "straggler". `stats` as of `Client.stats`."""

    groups: list[Group]
    reason: str
    stats: dict = field(default_factory=dict)


class Client:
    """Requests to replay, one at a time; safe to use from any thread. `name` is whom claims belong to.

    A request without an answer is sent again; after `timeout_s` DeadlineError is raised. Who must commit while a claim
    waits uses a second client of the same name.
    """

    def __init__(self, endpoints: Endpoints, name: str, timeout_s: float = 30.0):
        self._endpoint, self._name, self._timeout_s = endpoints.serve, name, timeout_s
        self._lock = threading.Lock()
        self._request = 0
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.IDENTITY, f"{name}/{secrets.token_hex(4)}".encode())
        self._dealer.setsockopt(zmq.IMMEDIATE, 1)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.connect(self._endpoint)

    def claim(self, count: int, step: int, max_staleness: int, wait_s: float) -> Claim:
        """`count` groups for the trainer at `step`, none staler than `max_staleness`; or none within `wait_s`."""
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            header, index, blob = self._ask("claim", left_s, count=count, step=step, max_staleness=max_staleness)
            groups, torn = _groups(header["groups"], index, blob)
            if not torn:
                return Claim(groups, header["reason"], header["stats"])
            log.error("replay served %d groups that cannot be decoded: %s", len(torn), torn[0][1])
            self._ask("torn", ids=[group for group, _ in torn])
            self._ask("release", ids=[group.id for group in groups])

    def commit(self, ids: list[bytes], step: int) -> None:
        """These claimed groups were used by `step`. Raises RedraftError when that claim was lost to another use."""
        self._ask("commit", ids=ids, step=step)

    def checkpoint(self, step: int) -> None:
        """A durable checkpoint covers `step`: replay may forget the groups used up to it."""
        self._ask("checkpoint", step=step)

    def resume(self, step: int) -> None:
        """Undoes the uses after `step` and gives back every claim, whoever holds it."""
        self._ask("resume", step=step)

    def release(self, ids: list[bytes]) -> None:
        """Gives back these groups, claimed under this client's name and not used."""
        self._ask("release", ids=ids)

    def known(self, ids: list[bytes]) -> set[bytes]:
        """Which of these groups are closed: ready, in use, used or forgotten."""
        return set(self._ask("known", ids=ids)[0]["ids"])

    def abandon(self, group: bytes, lease: int) -> None:
        """Drops the open rows of plays of `group` up to `lease` and refuses later ones of them."""
        self._ask("abandon", group=group, lease=lease)

    def stats(self) -> dict:
        """Counts, see `replay.store.Store.stats`."""
        return self._ask("stats")[0]["stats"]

    def close(self) -> None:
        with self._lock:
            self._dealer.close()
            self._context.term()

    def _ask(self, op: str, wait_s: float = 0.0, **fields) -> tuple[dict, bytes, bytes]:
        """Header, index and blob of the reply to one request, which replay may answer after `wait_s`."""
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
                raise DeadlineError(waiter, culprit, wait_s + self._timeout_s, f"no answer to {op!r}")
        if "error" in reply[0]:
            raise RedraftError(f"replay at {self._endpoint}: {reply[0]['error']}")
        return reply

    def _try(self, request: bytes, until: float) -> tuple[dict, bytes, bytes] | None:
        """Sends once and waits for the reply of this request; replies to earlier ones are passed over."""
        if not self._dealer.poll(_ms_until(until), zmq.POLLOUT):
            return None
        self._dealer.send(request)
        while self._dealer.poll(_ms_until(until), zmq.POLLIN):
            frames = self._dealer.recv_multipart()
            header = unpack(frames[0])
            if header["id"] == self._request:
                return (header, *frames[1:]) if len(frames) == 3 else (header, b"", b"")
        return None


def _ms_until(moment: float) -> int:
    return max(int((moment - time.monotonic()) * 1000), 0)


def _groups(heads: list[dict], index: bytes, blob: bytes) -> tuple[list[Group], list[tuple[bytes, Exception]]]:
    """The decoded groups of a claim, and those that cannot be decoded."""
    rows = iter(split(index, blob))
    groups, torn = [], []
    for head in heads:
        of_group = list(islice(rows, head["rows"]))
        try:
            groups.append(whole_group(of_group))
        except WireError as error:
            torn.append((head["id"], error))
    return groups, torn
