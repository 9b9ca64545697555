"""100,000 malformed messages beside an honest producer and learner: refused, counted, and they harm nothing."""

from __future__ import annotations

import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
import zmq
from support.replay_fuzz import LAST, Fuzz, Message
from support.replay_house import ANY, client_of, endpoints_in, gid, play, problem_of, producer_of, serve
from support.waiting import deadline_s

from protocols.errors import RedraftError
from protocols.wire import unpack

MESSAGES = 100_000
DEADLINE_S = 60.0
PATIENCE_S = 10.0  # of the honest, while 100,000 messages come in
GROWTH = 64 << 20  # bytes that the service may come to hold beyond what it held before
LINES = 200  # of its log: of each kind of refusal the first is told
HONEST = 1
PEERS = 4  # sockets an endpoint, and as many for messages with flipped bytes


@pytest.fixture
def place():
    """A folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(params=["process", "power"])
def service(place, request):
    process = serve(place, endpoints_in(place), durability=request.param)
    yield process
    if process.running:
        process.kill()


def memory_of(pid: int) -> int:
    """Bytes of a process's own memory: without the map of the spool."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10


class Honest:
    """A producer and a learner that work until told to stop."""

    def __init__(self, endpoints):
        self._stop = threading.Event()
        self.played, self.used, self.problems = {}, [], []
        self._threads = [threading.Thread(target=work, args=(endpoints,)) for work in (self._play, self._learn)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends in order: all that was played is acknowledged and used, or it is a problem."""
        self._stop.set()
        for thread in self._threads:
            thread.join(deadline_s(DEADLINE_S))

    def _play(self, endpoints) -> None:
        producer = producer_of("actor")
        try:
            while not self._stop.wait(0.02):
                group = gid(HONEST, len(self.played))
                self.played[group] = play(producer, group, endpoints.ingest)
            producer.close(PATIENCE_S)
        except RedraftError as error:
            self.problems.append(repr(error))

    def _learn(self, endpoints) -> None:
        client, step = client_of(endpoints, "learner", PATIENCE_S), 0
        try:
            while self._threads[0].is_alive() or set(self.played) - set(self.used):
                self._use(client.claim(1, step, ANY, 0.1).groups, client, step)
                step += 1
                if step % 50 == 0:
                    client.checkpoint(step - 20)
        except RedraftError as error:
            self.problems.append(repr(error))
        finally:
            client.close()

    def _use(self, groups, client, step: int) -> None:
        mine = [group for group in groups if group.id[:8] == gid(HONEST, 0)[:8]]
        self.problems += filter(None, map(problem_of, mine))
        if mine:
            client.commit([group.id for group in mine], step)
        self.used += [group.id for group in mine]
        with suppress(RedraftError):  # groups of the strangers, who commit them too
            client.commit([group.id for group in groups if group.id[:8] != gid(HONEST, 0)[:8]], step)


class Sender:
    """Sockets to one endpoint. Answers are read, or they would pile up."""

    def __init__(self, context: zmq.Context, endpoint: str, last: Message, last_answer: Callable[[dict], bool]):
        """`last` is a sound message whose answer is recognised by `last_answer`."""
        self._last, self._last_answer = last, last_answer
        self._sockets = [context.socket(zmq.DEALER) for _ in range(2 * PEERS)]
        for dealer in self._sockets:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
            dealer.connect(endpoint)

    def send(self, message: Message, number: int) -> None:
        dealer = self._sockets[number % PEERS + (PEERS if message.flipped else 0)]
        try:
            dealer.send_multipart(message.frames, copy=True)
        except zmq.Again:
            raise AssertionError(f"nothing was read for {PATIENCE_S} s") from None
        while dealer.poll(0):
            dealer.recv_multipart()

    def close(self) -> None:
        """Returns when all was read: a hang-up may lose what was not."""
        for dealer in self._sockets:
            dealer.send_multipart(self._last.frames)
            while True:
                assert dealer.poll(1000 * deadline_s(PATIENCE_S)), "no answer to a sound message"
                if self._last_answer(unpack(dealer.recv_multipart()[0])):
                    break
            dealer.close()


def bombard(service, endpoints, count: int, seed: int, odd_share: float = 0.0) -> int:
    """Sends `count` messages to both endpoints; how many of them are certainly bad. Returns when all were read."""
    began, normal_s = time.monotonic(), DEADLINE_S * max(count / MESSAGES, 1)
    fuzz, choice, bad = Fuzz(seed), random.Random(seed), 0
    rows, request = fuzz.last_rows(), fuzz.last_request()
    with closing(client_of(endpoints, "watcher")) as client, zmq.Context() as context:
        before = client.stats().refused
        ingest = Sender(context, endpoints.ingest, rows, lambda answer: LAST in answer.get("batches", ()))
        serve = Sender(context, endpoints.serve, request, lambda answer: answer["id"] == LAST)
        try:
            for number in range(count):
                side, odd = choice.random() < 0.5, choice.random() < odd_share
                message = fuzz.rows(odd) if side else fuzz.request(odd)
                bad += message.bad
                (ingest if side else serve).send(message, number)
                assert time.monotonic() - began < deadline_s(normal_s), f"only {number} messages were sent in time"
        except AssertionError as error:
            context.destroy(linger=0)
            raise AssertionError(f"{error}; the service said\n{service.said()[-4000:]}") from None
        ingest.close()
        serve.close()
        refused = client.stats().refused - before
        assert refused >= bad if odd_share else refused == bad, f"{refused} refused, where {bad} were certainly bad"
    return bad


def strangers(path: str, count: int) -> None:
    """Peers that do not even speak ZeroMQ."""
    generator = random.Random(count)
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(deadline_s(DEADLINE_S))
            peer.connect(path)
            try:
                peer.sendall(generator.randbytes(generator.randrange(1, 200)))
            except OSError:
                continue  # it has hung up: that is one way to refuse


def storm(place, service, count: int, seed: int) -> None:
    endpoints, began = endpoints_in(place), time.monotonic()
    bombard(service, endpoints, 2000, seed + 1, 0.5)  # what a first few cost is no growth
    before, honest = memory_of(service.popen.pid), Honest(endpoints)
    try:
        bad = bombard(service, endpoints, count // 10, seed + 2, 0.5) + bombard(service, endpoints, count, seed)
        strangers(endpoints.ingest.removeprefix("ipc://"), 100)
        strangers(endpoints.serve.removeprefix("ipc://"), 100)
        seconds = time.monotonic() - began
    finally:
        honest.stop()
    assert service.running, service.said()[-4000:]
    grown = memory_of(service.popen.pid) - before
    print(
        f"replay fuzz: {count + count // 10} messages in {seconds:.0f} s, {bad} of them certainly bad and refused, "
        f"{len(honest.played)} honest groups beside them, memory {grown / 2**20:+.1f} MiB"
    )
    assert not honest.problems, honest.problems[:5]
    assert sorted(honest.used) == sorted(honest.played), "an honest group was lost or used twice"
    lines = service.said().count("\n")
    assert lines < LINES, f"strangers made the service write {lines} lines to its log:\n{service.said()[-2000:]}"
    assert grown < GROWTH, f"the service grew by {grown >> 20} MiB"
    comes_up_again(place, service, honest)


def comes_up_again(place, service, honest) -> None:
    """Nothing that was stored keeps a service from starting, and it knows what the one before knew."""
    held = []
    for incarnation in (service, None):
        incarnation = incarnation or serve(place, endpoints_in(place))
        try:
            with closing(client_of(endpoints_in(place), "watcher")) as client:
                assert client.known(list(honest.played)) == set(honest.played)
                stats = client.stats()
                held.append({name: getattr(stats, name) for name in ("open", "ready", "claimed", "rows", "bytes")})
        finally:
            incarnation.kill()
    assert held[0] == held[1]


def test_malformed_messages_are_refused_and_harm_nothing(place, service):
    storm(place, service, MESSAGES, seed=1)


@pytest.mark.prove
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_ten_times_as_many_malformed_messages_harm_nothing(place, service, seed):
    storm(place, service, 10 * MESSAGES, seed)
