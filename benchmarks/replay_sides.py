"""What each process of a side of `benchmarks.replay` does: raw ZeroMQ, this service, a Ray actor, a Ray queue."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zmq

from protocols.keys import group_id
from protocols.turns import Close, Group, Lease, Role, Turn
from protocols.wire import decode_turn, encode_turn

if TYPE_CHECKING:
    from replay.client import Client
    from replay.config import ClientKeys, Endpoints
    from replay.server.service import Service

PROMPT, RESPONSE = 250, 1000
TURN_BYTES = 4 * PROMPT + 8 * RESPONSE
GROUP_TURNS, BATCH_GROUPS = 8, 32
BATCH_TURNS = GROUP_TURNS * BATCH_GROUPS
JOINED_TURNS = 32  # in a frame of the side raw-joined, as in a message of this service
WINDOW_TURNS = 4096  # that a producer may have under way on the sides without credit: the credit of this service
ZEROS = bytes(TURN_BYTES)
CHECKPOINT_STEPS = 16
AHEAD = 2  # batches that the consumer of this service claims before it needs them
PACED_TURNS_S = 400.0
RAY_CALLS = 64  # a producer's calls under way
POLL_S = 0.005  # how long a Ray consumer sleeps that found too little
NO_BOUND = 1 << 20  # of staleness
HELD_BYTES = 64 << 20  # that this service may hold before it holds producers back; raw ZeroMQ queues 4096 turns of each
HEAD = struct.Struct("<16siI")  # of a turn sent raw: group, turn, bytes of the record
SETTINGS = {"ipc": {}, "tcp": {"curve": False}, "curve": {"curve": True}, "power": {"durability": "power"}}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one side. `turns` in all, the same number from each producer; a paced job measures latency.

    The clock starts when the consumer has had `warm` of the turns.
    """

    system: str
    producers: int
    paced: bool
    turns: int
    warm: int
    folder: str
    ports: tuple[int, int]
    limit_s: float

    @property
    def wait_s(self) -> float:
        """The longest wait of a worker: it ends before the run does, and names whom it waited for."""
        return 0.4 * self.limit_s

    @property
    def groups_each(self) -> int:
        return self.turns // GROUP_TURNS // self.producers


# Turns, time and what a process used.


def _arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 150_000, size, dtype=np.int32) for size in (PROMPT, RESPONSE)]
    return tokens[0], tokens[1], -random.random(RESPONSE, dtype=np.float32)


def _turns(group: bytes, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Iterator[Turn]:
    prompt, response, logprobs = arrays
    for turn in range(GROUP_TURNS):
        yield Turn(group, 0, turn, turn - 1, prompt, response, logprobs, ((0, 0),), Role.ACTION, index=turn)


class Pace:
    """Holds a paced producer back; others pass."""

    def __init__(self, job: Job):
        self._paced, self._turns, self._began = job.paced, 0, time.monotonic()

    def wait(self) -> None:
        """Sleeps until the next turn is due."""
        if self._paced:
            self._turns += 1
            time.sleep(max(self._began + self._turns / PACED_TURNS_S - time.monotonic(), 0.0))


def peak_bytes(pid: int | str = "self") -> int:
    """Largest resident size of a process. Not `ru_maxrss`: a spawned process inherits that from its parent."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Link:
    """A worker's line to the run: `ready` waits for the start, `warm` and `done` say when, `end` what it used."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe

    def ready(self) -> None:
        self._pipe.send(("ready", None))
        self._pipe.recv()

    def warm(self) -> None:
        self._pipe.send(("warm", time.monotonic()))

    def done(self) -> None:
        self._pipe.send(("done", time.monotonic()))

    def end(self, latencies_s: list[float] | None = None) -> None:
        self._pipe.recv()
        self._pipe.send(("end", {"peak_bytes": peak_bytes(), "latencies_s": latencies_s or []}))


Part = Callable[[Job, int, Link], None]


def work(part: Part, job: Job, number: int, pipe: Connection) -> None:
    """The main function of a worker process."""
    try:
        part(job, number, Link(pipe))
    except (EOFError, BrokenPipeError):
        return  # the run has gone away
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def parts(job: Job) -> dict[str, tuple[Part, int]]:
    """The processes of a side without Ray, by name."""
    raw = job.system.startswith(("raw", "bytes"))
    if not raw:
        _make_keys(job)
    named = {} if raw else {"service": (replay_service, 0)}
    named["consumer"] = (raw_consumer if raw else replay_consumer, 0)
    return named | {f"producer {n}": (raw_producer if raw else replay_producer, n) for n in range(job.producers)}


# Raw ZeroMQ: PUSH and PULL over ipc, nothing kept, nothing acknowledged.


def _raw_socket(context: zmq.Context, kind: int, job: Job) -> zmq.Socket:
    raw = context.socket(kind)
    raw.set_hwm(WINDOW_TURNS // 2 // _frame_turns(job))  # half of the window here, half there
    raw.setsockopt(zmq.SNDTIMEO, int(job.wait_s * 1000))
    raw.setsockopt(zmq.RCVTIMEO, int(job.wait_s * 1000))
    raw.setsockopt(zmq.LINGER, 0)
    return raw


def _frame_turns(job: Job) -> int:
    return JOINED_TURNS if job.system.endswith("-joined") else 1


def raw_producer(job: Job, number: int, link: Link) -> None:
    turns, joined = _raw_turns(job, number), _frame_turns(job)
    with zmq.Context() as context, _raw_socket(context, zmq.PUSH, job) as push:
        push.connect(f"ipc://{job.folder}/raw")
        push.send(b"hello")
        link.ready()
        pace = Pace(job)
        for _ in range(job.turns // job.producers // joined):
            pace.wait()
            if joined > 1:
                push.send(b"".join(part for _ in range(joined) for part in next(turns)), copy=False)
            else:
                push.send(b"".join(next(turns)))
        link.done()
        link.end()


def _raw_turns(job: Job, number: int) -> Iterator[tuple[bytes, bytes]]:
    """Head and record of each turn: encoded as this service does it, or for `bytes` always the same."""
    arrays = _arrays()
    if job.system.startswith("bytes"):
        while True:
            yield b"", ZEROS
    for place in range(job.groups_each):
        group = group_id("benchmark", number, str(place))
        for turn in _turns(group, arrays):
            if job.paced:
                turn.extra["sent"] = time.monotonic()
            record = encode_turn(turn)
            yield HEAD.pack(group, turn.turn, len(record)), record


def raw_consumer(job: Job, number: int, link: Link) -> None:
    joined, latencies_s, batch = _frame_turns(job), [], []
    take = (lambda frame: []) if job.system.startswith("bytes") else _raw_decoded
    with zmq.Context() as context, _raw_socket(context, zmq.PULL, job) as pull:
        pull.bind(f"ipc://{job.folder}/raw")
        for _ in range(job.producers):
            pull.recv()
        link.ready()
        for frame in range(job.turns // joined):
            if frame == job.warm // joined:
                link.warm()
            batch = [] if len(batch) == BATCH_TURNS else batch
            batch += take(pull.recv(copy=False).buffer)
            if job.paced and frame % GROUP_TURNS == GROUP_TURNS - 1:
                latencies_s.append(time.monotonic() - batch[-1].extra["sent"])
        link.done()
        link.end(latencies_s)


def _raw_decoded(frame: memoryview) -> list[Turn]:
    turns, start = [], 0
    while start < len(frame):
        group, turn, size = HEAD.unpack_from(frame, start)
        start += HEAD.size + size
        turns.append(decode_turn(group, 0, turn, frame[start - size : start]))
    return turns


# This service. All that is called of its API is up to `replay_service`, and the requests of `replay_consumer`. It is
# imported late so that raw ZeroMQ and Ray need not carry it.


def _endpoints(job: Job) -> Endpoints:
    from replay.config import Endpoints

    if job.system in ("tcp", "curve"):
        return Endpoints(*(f"tcp://127.0.0.1:{port}" for port in job.ports))
    return Endpoints(f"ipc://{job.folder}/ingest", f"ipc://{job.folder}/serve")


def _service(job: Job) -> Service:
    from replay.config import ReplaySettings
    from replay.server.service import Service

    settings = ReplaySettings(max_bytes=HELD_BYTES, **SETTINGS[job.system])
    return Service(Path(job.folder, "spool"), _endpoints(job), settings, "benchmark", Path(job.folder, "keys"))


def _make_keys(job: Job) -> None:
    from replay import keys

    if job.system == "curve":
        keys.new(Path(job.folder, "keys"))


def _keys(job: Job) -> ClientKeys | None:
    from replay import keys

    return keys.client_keys(Path(job.folder, "keys")) if job.system == "curve" else None


def _client(job: Job) -> Client:
    from replay.client import Client

    return Client([_endpoints(job)], "consumer", _keys(job), job.wait_s)


class Sender:
    """A producer of this service."""

    def __init__(self, job: Job, number: int):
        from replay.client import Producer

        self._job, self._number = job, number
        self._shard = _endpoints(job).ingest
        self._producer = Producer(f"producer-{number}", _keys(job))

    def lease(self, place: int) -> Lease:
        """Of the group in `place` of this producer's groups; -1 for one before them."""
        group = group_id("benchmark", self._number, str(place))
        return Lease(group, 0, (place + 1) * self._job.producers + self._number, {}, 0, self._shard)

    async def room(self, lease: Lease) -> None:
        await self._producer.room(lease.shard, self._job.wait_s)

    def add(self, item: Turn | Close, lease: Lease) -> Future | None:
        return self._producer.add(item, lease, spread=1.0)

    def flush(self) -> None:
        self._producer.flush(self._job.wait_s)

    def close(self) -> None:
        self._producer.close(1.0)


def replay_service(job: Job, number: int, link: Link) -> None:
    with _service(job):
        link.ready()
        link.end()


def replay_producer(job: Job, number: int, link: Link) -> None:
    sender = Sender(job, number)
    try:
        lease = sender.lease(-1)
        sender.add(Close(lease.group, 0, 0), lease).result(job.wait_s)  # an empty group: the way is open
        link.ready()
        asyncio.run(_play(sender, job))
        sender.flush()
        link.done()
        link.end()
    finally:
        sender.close()


async def _play(sender: Sender, job: Job) -> None:
    """Streams groups as an actor does: it waits for room before each, never within one."""
    arrays, pace = _arrays(), Pace(job)
    for place in range(job.groups_each):
        lease = sender.lease(place)
        await sender.room(lease)
        for turn in _turns(lease.group, arrays):
            pace.wait()
            sender.add(turn, lease)
        sender.add(Close(lease.group, 0, GROUP_TURNS, extra={"sent": time.monotonic()}), lease)


def replay_consumer(job: Job, number: int, link: Link) -> None:
    """A learner's steps: claims that are made ahead in threads, a commit each, now and then a checkpoint."""
    count = 1 if job.paced else BATCH_GROUPS
    steps, latencies_s = job.turns // GROUP_TURNS // count, []
    client, claimers = _client(job), [_client(job) for _ in range(1 if job.paced else AHEAD)]

    def claim(step: int) -> tuple[list[Group], float]:
        groups = claimers[step % len(claimers)].claim(count, step, NO_BOUND, job.wait_s).groups
        if not groups:
            raise TimeoutError(f"no groups for step {step} within {job.wait_s:g} s: {client.stats()}")
        return groups, time.monotonic()

    with ThreadPoolExecutor(len(claimers)) as pool:
        try:
            client.stats()
            link.ready()
            claims = deque(pool.submit(claim, step) for step in range(len(claimers)))
            for step in range(steps):
                if step * GROUP_TURNS * count == job.warm:
                    link.warm()
                groups, now = claims.popleft().result()
                if step + len(claimers) < steps:
                    claims.append(pool.submit(claim, step + len(claimers)))
                latencies_s += [now - group.extra["sent"] for group in groups if job.paced]
                client.commit([group.id for group in groups], step + 1)
                if (step + 1) % CHECKPOINT_STEPS == 0:
                    client.checkpoint(step + 1)
            link.done()
            link.end(latencies_s)
        finally:
            for one in (client, *claimers):
                one.close()


# Ray: a turn is what `encode_turn` makes of it, which is cheaper for Ray than a Turn with its arrays.

Record = tuple[bytes, int, bytes]


def _records(job: Job, number: int) -> Iterator[Record]:
    arrays, pace = _arrays(), Pace(job)
    for place in range(job.groups_each):
        group = group_id("benchmark", number, str(place))
        for turn in _turns(group, arrays):
            pace.wait()
            if job.paced:
                turn.extra["sent"] = time.monotonic()
            yield group, turn.turn, encode_turn(turn)


class Buffer:
    """A list in a Ray actor."""

    def __init__(self):
        self._records: list[Record] = []

    def append(self, records: list[Record]) -> None:
        self._records += records

    def take(self, count: int) -> list[Record]:
        """`count` records, or none while there are fewer."""
        if len(self._records) < count:
            return []
        taken = self._records[:count]
        del self._records[:count]
        return taken


class RayActorEnd:
    """Reaches the buffer: a call a turn, at most RAY_CALLS of them under way."""

    def __init__(self, buffer):
        self._buffer, self._calls = buffer, []

    def put(self, record: Record) -> None:
        import ray

        if len(self._calls) == RAY_CALLS:  # half of them at once: waiting for one is dear
            ray.get(self._calls[: RAY_CALLS // 2])
            del self._calls[: RAY_CALLS // 2]
        self._calls.append(self._buffer.append.remote([record]))

    def flush(self) -> None:
        import ray

        ray.get(self._calls)
        self._calls.clear()

    def take(self, count: int) -> list[Record]:
        import ray

        return ray.get(self._buffer.take.remote(count))


class RayQueueEnd:
    """Reaches the queue, whose `put` waits for each item."""

    def __init__(self, queue):
        self._queue = queue

    def put(self, record: Record) -> None:
        self._queue.put(record)

    def flush(self) -> None:
        """Nothing is under way once `put` has returned."""

    def take(self, count: int) -> list[Record]:
        from ray.util.queue import Empty

        try:
            return self._queue.get_nowait_batch(count)
        except Empty:
            return []


class RayWorker:
    """A producer or the consumer, in a Ray actor of its own."""

    def __init__(self, end: RayActorEnd | RayQueueEnd, job: Job):
        self._end, self._job = end, job

    def ready(self) -> int:
        """Goes the whole way once; returns the process id."""
        self._end.take(1 << 30)
        return os.getpid()

    def produce(self, number: int) -> None:
        for record in _records(self._job, number):
            self._end.put(record)
        self._end.flush()

    def consume(self, left: int) -> tuple[float, list[float]]:
        """When it had `left` turns more, and how old the last turn of each group was where the job is paced."""
        latencies_s = []
        count, pause_s = (GROUP_TURNS, POLL_S / 5) if self._job.paced else (BATCH_TURNS, POLL_S)
        while left:
            turns = [decode_turn(group, 0, turn, record) for group, turn, record in self._end.take(count)]
            left -= len(turns)
            if not turns:
                time.sleep(pause_s)
            elif self._job.paced:
                latencies_s.append(time.monotonic() - turns[-1].extra["sent"])
        return time.monotonic(), latencies_s
