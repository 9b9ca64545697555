"""Replay over tcp: with CURVE only who has the run's keys gets anything in or out; without it everyone does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.ports import tcp_endpoints
from support.shard_house import gid
from support.waiting import deadline_s, until

from protocols.errors import DeadlineError
from protocols.turns import Close, Lease, Role, Turn
from replay import keys
from replay.client import Client, Producer
from replay.config import ClientKeys, Endpoints, ReplaySettings
from replay.server.service import Service

ANY = 1000  # a staleness that nothing exceeds
SECRET = np.frombuffer(b"the bytes of a turn, as they must not lie on the wire...", np.int32)


def turn(number: int) -> Turn:
    random = np.random.default_rng(number)
    response = np.concatenate([SECRET, random.integers(0, 50_000, 900, dtype=np.int32)])
    logprobs = -random.random(len(response), dtype=np.float32)
    logprobs[0] = np.nan
    return Turn(gid(number), 0, 0, -1, SECRET[:3], response, logprobs, ((0, 0),), Role.ATTEMPT, reward=0.5)


def play(producer: Producer, shard: str, number: int):
    """A group of one turn; the future of its close row."""
    lease = Lease(gid(number), 0, number, {}, 0, shard)
    producer.add(turn(number), lease)
    return producer.add(Close(gid(number), 0, 1), lease, 1.0)


class Peer:
    """A producer and a client with the same keys, or none."""

    def __init__(
        self, stack: ExitStack, name: str, where: Endpoints, given: ClientKeys | None, timeout_s: float = 10.0
    ):
        self.where, self.timeout_s = where, timeout_s
        self.producer = Producer(name, given)
        stack.callback(self._close_producer)
        self.client = Client([where], name, given, timeout_s)
        stack.callback(self.client.close)

    def play(self, number: int):
        return play(self.producer, self.where.ingest, number)

    def _close_producer(self) -> None:
        try:
            self.producer.close(self.timeout_s)
        except DeadlineError:
            assert self.timeout_s < 5, "rows of a peer with the right keys were left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    keys.new(made := tmp_path_factory.mktemp("keys") / "run")
    return made


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> ClientKeys:
    """Keys of another run."""
    keys.new(other := tmp_path_factory.mktemp("keys") / "other")
    return keys.client_keys(other)


@contextmanager
def service(place: Path, folder: Path | None, **settings) -> Iterator[tuple[Endpoints, ExitStack]]:
    """A service over tcp, and a stack for its peers."""
    where = tcp_endpoints()
    with Service(place / "spool", where, ReplaySettings(**settings), "run", folder), ExitStack() as stack:
        yield where, stack


def check_arrival(peer: Peer, numbers: range, played: int = 0) -> None:
    """What the peer sends comes back to it byte for byte, and can be committed. The first ones are `played` already."""
    for done in [peer.play(number) for number in numbers[played:]]:
        done.result(deadline_s(20))
    groups = peer.client.claim(len(numbers), 0, ANY, 10).groups
    assert [group.id for group in groups] == [gid(number) for number in numbers]
    for group, number in zip(groups, numbers, strict=True):
        (got,), sent = group.turns, turn(number)
        for name in ("prompt", "response", "logprobs"):
            assert getattr(got, name).tobytes() == getattr(sent, name).tobytes()
    peer.client.commit([group.id for group in groups], 1)


def intruder(kind: str, right: ClientKeys, strange: ClientKeys) -> ClientKeys | None:
    return {
        "no keys": None,
        "another run's keys": strange,
        "a pair of its own": replace(right, public=strange.public, secret=strange.secret),
        "another server's key": replace(right, server=strange.server),
    }[kind]


@pytest.mark.parametrize("kind", ["no keys", "another run's keys", "a pair of its own", "another server's key"])
def test_whoever_lacks_the_keys_gets_nothing_in_or_out_and_harms_nobody(tmp_path, folder, strange, kind):
    right = keys.client_keys(folder)
    with service(tmp_path, folder) as (where, stack):
        friend = Peer(stack, "friend", where, right)
        check_arrival(friend, range(10))
        friend.play(10).result(deadline_s(20))
        assert friend.client.stats().refused == 0
        foe = Peer(stack, "foe", where, intruder(kind, right, strange), timeout_s=0.5)
        row = foe.play(99)
        until(lambda: friend.client.stats().refused > 1, f"a peer with {kind} is counted, for rows and for requests")
        for attempt in (foe.client.stats, lambda: foe.client.claim(1, 0, ANY, 0.0), lambda: foe.producer.flush(0.5)):
            with pytest.raises(DeadlineError, match=f"replay at {where.ingest[:16]}"):
                attempt()
        assert not row.done()
        check_arrival(friend, range(10, 40), played=1)
        stats = friend.client.stats()
        assert friend.client.known([gid(99)]) == set() and stats.open == 0
        assert (stats.ready, stats.stored, stats.trained_total) == (0, 80, 40), "nothing but the friend's"
        print(f"{kind}: {stats.refused} handshakes refused")


def test_the_right_keys_still_work_after_a_restart_of_the_service(tmp_path, folder):
    where, settings = tcp_endpoints(), ReplaySettings()
    with ExitStack() as stack:
        with Service(tmp_path / "spool", where, settings, "run", folder):
            friend = Peer(stack, "friend", where, keys.client_keys(folder))
            check_arrival(friend, range(5))
        rows = friend.play(5)
        with Service(tmp_path / "spool", where, settings, "run", folder):
            rows.result(deadline_s(20))
            check_arrival(friend, range(5, 9), played=1)


def test_without_curve_everyone_gets_through(tmp_path):
    with service(tmp_path, None, curve=False) as (where, stack):
        peer = Peer(stack, "anyone", where, None)
        check_arrival(peer, range(20))
        assert peer.client.stats().refused == 0


@pytest.mark.parametrize("curve", [True, False])
def test_the_bytes_on_the_wire_are_readable_only_without_curve(tmp_path, folder, curve):
    given = folder if curve else None
    with service(tmp_path, given, curve=curve) as (where, stack):
        wire = stack.enter_context(Tap(where.ingest))
        tapped = replace(where, ingest=wire.endpoint)
        peer = Peer(stack, "peer", tapped, keys.client_keys(folder) if curve else None)
        check_arrival(peer, range(3))
        seen = bytes(wire.seen)
    assert len(seen) > 3 * 900 * 8
    assert (SECRET.tobytes() in seen) is not curve


class Tap:
    """Passes one tcp connection on to a service and keeps what the peer sent."""

    def __init__(self, endpoint: str):
        self._to = int(endpoint.rsplit(":", 1)[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen = bytearray()

    def __enter__(self) -> Tap:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        service = socket.create_connection(("127.0.0.1", self._to))
        threading.Thread(target=self._pass, args=(service, peer, bytearray()), daemon=True).start()
        self._pass(peer, service, self.seen)

    def _pass(self, source: socket.socket, target: socket.socket, seen: bytearray) -> None:
        with source, target:
            while got := source.recv(1 << 16):
                seen += got
                target.sendall(got)
