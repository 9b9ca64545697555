"""Producer: sends rows to replay until they are acknowledged."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import zmq

from protocols import metrics
from protocols.errors import DeadlineError, RedraftError, WireError
from protocols.turns import Close, Lease, Turn
from protocols.wire import ENTRY, PLAY_BYTES, SCHEMA, Packed, join, pack, row_of, unpack
from replay.client.link import connected, hint
from replay.config import (
    BATCH_BYTES,
    BATCH_ROWS,
    LINGER_S,
    MAX_ROW_BYTES,
    RESEND_S,
    WINDOW_BYTES,
    WINDOW_ROWS,
    ClientKeys,
)

log = logging.getLogger("redraft.replay")
NEVER = float("inf")


@dataclass(slots=True)
class _Batch:
    """Rows sent together, kept until they are acknowledged."""

    number: int
    frames: list[bytes]
    rows: int
    size: int
    resend_at: float = 0.0


class Producer:
    """Streams rows to the shards that their leases name; safe to use from any thread.

    Rows are kept and sent again until acknowledged. `add` never blocks: a producer that awaits `room` before it plays
    stays within the credit window. A shard that joins later is connected to when a lease first names it.
    """

    def __init__(self, name: str, keys: ClientKeys | None = None):
        self._name, self._keys = name, keys
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._closed = False

    def add(self, item: Turn | Close, lease: Lease, spread: float = 0.0) -> Future[None] | None:
        """Takes a turn or close row of the play of `lease`.

        For a close row returns a future that is done when replay has stored it and all that was added before it for
        that shard; it fails with WireError when replay refuses any row of its play. Raises WireError when the turn
        cannot be encoded or is too large, RedraftError when the producer is closed.
        """
        return self._stream(lease.shard).add(item, lease.order, spread)

    async def room(self, shard: str, timeout_s: float) -> None:
        """Returns when the shard has room for a new group. Raises DeadlineError, naming it."""
        await self._stream(shard).room(timeout_s)

    def flush(self, timeout_s: float) -> None:
        """Returns when all that was added is acknowledged. Raises DeadlineError, naming the shard."""
        deadline = time.monotonic() + timeout_s
        for stream in list(self._streams.values()):
            stream.flush(max(deadline - time.monotonic(), 0.0))

    def close(self, timeout_s: float) -> None:
        """Flushes, then ends the io threads in any case. Raises DeadlineError when rows were left."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.flush(timeout_s)
        finally:
            for stream in self._streams.values():
                stream.end()

    @property
    def alive(self) -> bool:
        """Whether rows are being sent; False after `close`, or when an io thread has failed."""
        return not self._closed and all(stream.alive for stream in list(self._streams.values()))

    def _stream(self, shard: str) -> Stream:
        stream = self._streams.get(shard)
        if stream is not None:
            return stream
        with self._lock:
            if self._closed:
                raise RedraftError(f"the replay producer {self._name} is closed")
            if shard not in self._streams:
                self._streams[shard] = Stream(shard, self._name, self._keys)
            return self._streams[shard]


class Stream:
    """Rows on their way to one service."""

    def __init__(self, endpoint: str, name: str, keys: ClientKeys | None):
        self._endpoint, self._name, self._keys = endpoint, name, keys
        self._lock = threading.Lock()  # guards what follows
        self._changed = threading.Condition(self._lock)
        self._pending: deque[tuple[Packed, Future | None]] = deque()
        self._pending_bytes = 0
        self._rows = self._bytes = 0  # added and not yet acknowledged, pending ones included
        self._window = WINDOW_ROWS
        self._waiters: list[Future] = []
        self._flush_now = self._closing = False
        # The rest belongs to the io thread: a ZeroMQ socket is used by one thread only.
        self._batches: dict[int, _Batch] = {}
        self._closes: deque[tuple[int, bytes, Future]] = deque()  # batch number, play and future, in order
        self._refused: dict[bytes, WireError] = {}  # plays of which rows were refused, until they close
        self._due: deque[_Batch] = deque()  # to be sent now, in order
        self._sent = 0
        self._linger_until = self._ask_at = 0.0
        self._resend_at = NEVER
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        metrics.REPLAY_STALLS.inc(0)  # so that it is exported
        self._thread = threading.Thread(target=self._run, name=f"replay-{name}", daemon=True)
        self._thread.start()

    def add(self, item: Turn | Close, order: int, spread: float) -> Future[None] | None:
        packed = row_of(item, order, spread)
        size = len(packed[1])
        if size > MAX_ROW_BYTES:
            raise WireError(f"a turn must have at most {MAX_ROW_BYTES} bytes, got {size}. Make `extra` smaller")
        done = Future() if isinstance(item, Close) else None
        with self._lock:
            if self._closing:
                raise RedraftError(f"the replay producer {self._name} is closed")
            if not self._pending:
                self._linger_until = time.monotonic() + LINGER_S
            self._pending.append((packed, done))
            self._pending_bytes += size
            self._rows += 1
            self._bytes += size
            full = self._pending_bytes >= BATCH_BYTES or len(self._pending) % BATCH_ROWS == 0
            asleep = len(self._pending) == 1 and not self._batches  # else the thread looks again within LINGER_S
        if full or asleep:
            self._wake()
        return done

    async def room(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        stalled = False
        while True:
            with self._lock:
                if self._closing:
                    raise RedraftError(f"the replay producer {self._name} is closed")
                if self._has_room():
                    return
                waiter = Future()
                self._waiters.append(waiter)
            if not stalled:
                metrics.REPLAY_STALLS.inc()
                self._wake()  # it asks for room where no acknowledgement is awaited
                stalled = True
            try:
                await asyncio.wait_for(asyncio.wrap_future(waiter), max(deadline - time.monotonic(), 0))
            except TimeoutError:
                raise self._late(timeout_s) from None

    def flush(self, timeout_s: float) -> None:
        with self._changed:
            self._flush_now = True
            self._wake()
            done = self._changed.wait_for(lambda: not self._rows or self._closing, timeout_s)
            self._flush_now = False
            left = self._rows
        if left and done:
            raise RedraftError(f"the replay producer {self._name} has ended with {left} rows that are not acknowledged")
        if left:
            raise self._late(timeout_s)

    def end(self) -> None:
        """Ends the io thread, with or without acknowledgements."""
        with self._changed:
            self._closing = True
        self._wake()
        self._thread.join()
        self._waker.close()

    @property
    def alive(self) -> bool:
        return not self._closing

    def _has_room(self) -> bool:
        return self._rows < self._window and self._bytes < WINDOW_BYTES

    def _late(self, timeout_s: float) -> DeadlineError:
        detail = f"{self._rows} rows are not acknowledged, {self._window} may be{hint(self._endpoint, self._keys)}"
        return DeadlineError(f"producer {self._name}", f"replay at {self._endpoint}", timeout_s, detail)

    def _wake(self) -> None:
        try:
            self._waker.send(b"w")
        except OSError:
            return  # it has wakes enough, or has ended: one more changes nothing

    def _run(self) -> None:
        context = zmq.Context()
        try:
            with connected(context, self._endpoint, self._name, self._keys) as dealer:
                self._loop(dealer)
        except Exception:
            log.exception("the io thread of replay producer %s ended", self._name)
        finally:
            context.term()
            self._woken.close()
            self._end()

    def _loop(self, dealer: zmq.Socket) -> None:
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        while not self._closing:
            # Without a connection, or with a full queue to a slow service, nothing can be sent: what is due waits.
            poller.register(dealer, zmq.POLLIN | zmq.POLLOUT if self._due else zmq.POLLIN)
            ready = dict(poller.poll(self._wait_ms()))
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            if ready.get(dealer, 0) & zmq.POLLIN:
                self._receive(dealer)
            now = time.monotonic()
            self._resend(now)
            while self._send_due(dealer) and (batch := self._next_batch(now)) is not None:
                self._batches[batch.number] = batch
                self._due.append(batch)
            if self._waiters and not self._batches and self._ask_at <= now:
                self._ask_room(dealer, now)

    def _resend(self, now: float) -> None:
        """Makes batches due again that were not answered for RESEND_S."""
        if self._resend_at <= now and not self._due:
            self._due.extend(batch for batch in self._batches.values() if batch.resend_at <= now)

    def _send_due(self, dealer: zmq.Socket) -> bool:
        """Sends what is due, in order; False when the queue is full or nobody is there."""
        while self._due:
            batch = self._due[0]
            if batch.number in self._batches:
                try:
                    dealer.send_multipart(batch.frames, zmq.NOBLOCK)
                except zmq.Again:
                    return False
                batch.resend_at = time.monotonic() + RESEND_S
            self._due.popleft()
        self._resend_at = min((batch.resend_at for batch in self._batches.values()), default=NEVER)
        return True

    def _wait_ms(self) -> int:
        now = time.monotonic()
        until = now + (LINGER_S if self._batches else 1.0)
        with self._lock:
            if self._pending and not self._due and self._may_send():
                until = min(until, self._linger_until)
        if self._waiters and not self._batches:
            until = min(until, self._ask_at)
        return int(max(until - now, 0.0) * 1000) + 1

    def _may_send(self) -> bool:
        """Whether the window has room; without any batch out, one goes: rows of open groups are never held for ever."""
        if not self._batches:
            return True
        rows, size = self._rows - len(self._pending), self._bytes - self._pending_bytes
        return rows < self._window and size < WINDOW_BYTES

    def _next_batch(self, now: float) -> _Batch | None:
        """The next batch, if it is full or its first row has waited long enough."""
        with self._changed:
            if not self._pending:
                return None
            full = len(self._pending) >= BATCH_ROWS or self._pending_bytes >= BATCH_BYTES
            if not (full or self._flush_now or now >= self._linger_until) or not self._may_send():
                return None
            taken = self._take()
        self._sent += 1
        rows = [packed for packed, _ in taken]
        index, blob = join(rows)
        header = pack({"schema": SCHEMA, "kind": "rows", "batch": self._sent, "count": len(rows)})
        self._closes.extend(
            (self._sent, bytes(entry[:PLAY_BYTES]), done) for (entry, _), done in taken if done is not None
        )
        return _Batch(self._sent, [header, index, blob], len(rows), len(blob))

    def _take(self) -> list[tuple[Packed, Future | None]]:
        taken, size = [], 0
        while self._pending and len(taken) < BATCH_ROWS and size < BATCH_BYTES:
            taken.append(self._pending.popleft())
            size += len(taken[-1][0][1])
        self._pending_bytes -= size
        return taken

    def _ask_room(self, dealer: zmq.Socket, now: float) -> None:
        """Asks for room, since someone waits for it and no acknowledgement is due that would tell."""
        self._ask_at = now + RESEND_S / 10
        try:
            dealer.send(pack({"schema": SCHEMA, "kind": "room"}), zmq.NOBLOCK)
        except zmq.Again:
            return  # not connected: the next question

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
        """Drops answered batches. A close is done once no batch up to its own is out: resends come out of order.

        It fails when any row of its play was refused, for the group will never be whole.
        """
        done = [batch for number in numbers if (batch := self._batches.pop(number, None)) is not None]
        if error is not None:
            for batch in done:
                self._refused |= dict.fromkeys(_plays(batch.frames[1]), error)
        first_out = next(iter(self._batches), self._sent + 1)
        while self._closes and self._closes[0][0] < first_out:
            _, play, close = self._closes.popleft()
            _resolve(close, self._refused.pop(play, None))
        with self._changed:
            self._rows -= sum(batch.rows for batch in done)
            self._bytes -= sum(batch.size for batch in done)
            self._window = window
            waiters: list[Future] = []
            if (
                window and self._rows <= window // 2 and self._bytes <= WINDOW_BYTES // 2
            ):  # not at each row that becomes free
                waiters, self._waiters = self._waiters, waiters
            self._changed.notify_all()
        for waiter in waiters:
            _resolve(waiter, None)

    def _end(self) -> None:
        """Fails the futures of all that can no longer be acknowledged."""
        with self._changed:
            self._closing = True
            left = [done for _, done in self._pending if done is not None]
            left += [close for _, _, close in self._closes] + self._waiters
            self._waiters = []
            self._changed.notify_all()
        for future in left:
            _resolve(future, RedraftError(f"the replay producer {self._name} was closed before replay acknowledged"))


def _plays(index: bytes) -> set[bytes]:
    return {index[at : at + PLAY_BYTES] for at in range(0, len(index), ENTRY.size)}


def _resolve(future: Future, error: Exception | None) -> None:
    if not future.set_running_or_notify_cancel():
        return  # whoever waited for it has given up
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
