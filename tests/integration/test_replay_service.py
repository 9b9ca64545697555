"""The replay service over real ZeroMQ and LMDB: what it promises when peers misbehave, disks fill and processes die."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
import zmq
from support import processes
from support.shard_house import gid
from support.waiting import deadline_s, until

from protocols.errors import DeadlineError, RedraftError, SettingError, WireError
from protocols.turns import Close, Lease, Role, Turn
from protocols.weights import version_of
from protocols.wire import ENTRY, SCHEMA, Row, join, pack, row_of
from replay.client import Client, Producer
from replay.config import WINDOW_ROWS, Endpoints, ReplaySettings
from replay.server.service import Service

ANY = 1000  # a staleness that nothing exceeds
SERVE = """
import sys
from replay.config import Endpoints, ReplaySettings
from replay.server.service import Service
service = Service(sys.argv[1], Endpoints(*sys.argv[2:4]), ReplaySettings(), "run")
service.start()
print("ready", flush=True)
service.join()
"""


def turn(group, number=0, lease=0, version=0, size=8):
    generator = np.random.default_rng([int.from_bytes(group, "big"), number])
    ids = generator.integers(0, 50_000, size, dtype=np.int32)
    logprobs = -generator.random(size, dtype=np.float32)
    logprobs[-1] = np.nan
    return Turn(group, lease, number, number - 1, ids[:2], ids, logprobs, ((0, version),), Role.ATTEMPT, reward=1.0)


def given(endpoints, group, lease=0, order=None):
    order = int.from_bytes(group, "big") if order is None else order
    return Lease(group, lease, order, {}, 0, endpoints.ingest)


def play(producer, endpoints, group, turns=2, lease=0, version=0, order=None, size=8):
    """Adds a whole group; the future of its close row."""
    leased = given(endpoints, group, lease, order)
    for number in range(turns):
        producer.add(turn(group, number, lease, version, size), leased)
    return producer.add(Close(group, lease, turns), leased, 1.0)


@pytest.fixture
def place():
    """A folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def endpoints_in(place):
    return Endpoints(f"ipc://{place}/s/i", f"ipc://{place}/s/s")


class House:
    """A running service with one producer and one client."""

    def __init__(self, place, **settings):
        self.place, self.endpoints = place, endpoints_in(place)
        self.settings = ReplaySettings(**settings)
        self.open()
        self.producer = Producer("actor")
        self.client = Client([self.endpoints], "learner", timeout_s=deadline_s(10.0))

    def open(self):
        self.service = Service(self.place / "spool", self.endpoints, self.settings, "run")
        self.service.start()

    def restart(self):
        self.service.stop()
        self.open()

    def play(self, group, **choice):
        return play(self.producer, self.endpoints, group, **choice)

    def add(self, item, lease=0, order=None, spread=0.0):
        return self.producer.add(item, given(self.endpoints, item.group, lease, order), spread)

    def claim(self, count=1, step=0, max_staleness=ANY, wait_s=0.0):
        return self.client.claim(count, step, max_staleness, wait_s)

    def close(self):
        self.producer.close(10)
        self.client.close()
        self.service.stop()


@pytest.fixture
def house(place, request):
    house = House(place, **getattr(request, "param", {}))
    yield house
    house.close()


def test_ids_and_logprobs_arrive_byte_for_byte(house):
    house.play(gid(7), turns=40, size=300).result(deadline_s(10))
    (group,) = house.claim().groups
    assert (group.id, group.lease, len(group.turns)) == (gid(7), 0, 40)
    for number, got in enumerate(group.turns):
        sent = turn(gid(7), number, size=300)
        for name in ("prompt", "response", "logprobs"):
            assert getattr(got, name).tobytes() == getattr(sent, name).tobytes()
        assert got.versions == sent.versions and got.parent == sent.parent


def test_a_group_is_served_once_it_is_whole_and_never_before(house):
    group = gid(1)
    house.add(turn(group, 1))
    house.add(Close(group, 0, 2), spread=1.0).result(deadline_s(10))
    claim = house.claim()
    assert claim.groups == [] and claim.reason == "groups" and claim.stats.open == 1
    house.add(turn(group, 0))
    assert [g.id for g in house.claim(wait_s=10).groups] == [group], "a waiting claim is served when the group is whole"


def test_a_claim_is_all_or_nothing_in_the_order_of_the_leases(house):
    for number in (3, 1, 2):
        house.play(gid(number)).result(deadline_s(10))
    assert house.claim(4).groups == []
    assert [g.id for g in house.claim(2).groups] == [gid(1), gid(2)]
    assert house.claim(2).groups == []


def test_resends_and_late_plays_change_nothing(house):
    for lease in (0, 0, 1):
        house.play(gid(1), lease=lease).result(deadline_s(10))
    stats = house.client.stats()
    assert (stats.duplicate, stats.ready, stats.rows) == (6, 1, 3)
    house.add(turn(gid(2), 0, lease=3), 3)
    house.play(gid(2), turns=1, lease=2).result(deadline_s(10))
    stats = house.client.stats()
    assert (stats.fenced, stats.open, stats.ready) == (2, 1, 1)
    assert house.client.known([gid(1), gid(2), gid(3)]) == {gid(1)}


def test_the_history_of_a_run_with_a_resume_skips_nothing_and_uses_nothing_twice(house):
    for number in range(12):
        last = house.play(gid(number))
    last.result(deadline_s(10))
    history = {}

    def train(step):
        groups = house.claim(2, step, wait_s=5).groups
        history[step] = [group.id for group in groups]
        house.client.commit(history[step], step)
        house.client.commit(history[step], step)

    for step in range(4):
        train(step)
    house.client.checkpoint(1)
    until(lambda: house.client.stats().used == 4, "four groups are used")
    train(4)
    house.claim(1, 5)
    house.restart()
    house.client.resume(1)
    stats = house.client.stats()
    assert (stats.ready, stats.claimed, stats.used, stats.trained_total) == (8, 0, 0, 4)
    for step in range(2, 6):
        train(step)
    assert sorted(group for groups in history.values() for group in groups) == [gid(n) for n in range(12)]
    assert house.client.known([gid(n) for n in range(13)]) == {gid(n) for n in range(12)}
    house.client.checkpoint(5)
    until(lambda: house.client.stats().rows == 0, "all is forgotten")
    house.play(gid(3)).result(deadline_s(10))
    assert house.client.stats().trained_total == 12 and house.client.stats().open == 0


@pytest.mark.parametrize("house", [{"max_uses": 2}], indirect=True)
def test_with_two_uses_a_group_is_served_to_two_steps(house):
    house.play(gid(1)).result(deadline_s(10))
    for step in (0, 1):
        assert len(house.claim(1, step).groups) == 1
        house.client.commit([gid(1)], step)
    assert house.claim(1, 2).groups == []
    with pytest.raises(RedraftError, match="claim was lost"):
        house.client.commit([gid(1)], 2)


def test_stale_groups_are_set_aside_and_stragglers_waited_for(house):
    house.play(gid(1), version=0, order=1).result(deadline_s(10))
    house.add(turn(gid(2), 0, version=3))
    house.play(gid(3), version=4, order=3).result(deadline_s(10))
    claim = house.claim(1, step=5, max_staleness=2)
    assert claim.groups == [] and claim.reason == "straggler"
    assert claim.stats.dropped == {"stale": 1}
    waiting = threading.Thread(target=lambda: got.extend(house.claim(1, 5, 2, wait_s=10).groups))
    got = []
    waiting.start()
    controller = Client([house.endpoints], "controller", timeout_s=5.0)
    controller.abandon(gid(2), 0)
    waiting.join()
    assert [group.id for group in got] == [gid(3)]
    controller.close()


def test_versions_of_the_thousandth_incarnation_are_leased_and_served(house):
    version = version_of(3003, 50)  # each copy that is fetched from a store skips a thousand
    house.client.lease([(given(house.endpoints, gid(1)), version)])
    house.play(gid(1), version=version).result(deadline_s(10))
    assert house.claim(1, step=52, max_staleness=2, wait_s=5).groups[0].turns[0].versions == ((0, version),)


def test_groups_without_sampled_tokens_are_never_stale(house):
    silent = Turn(gid(1), 0, 0, -1, np.zeros(2), np.zeros(0), np.zeros(0), (), Role.ERROR)
    house.add(silent)
    house.add(Close(gid(1), 0, 1)).result(deadline_s(10))
    assert len(house.claim(1, step=900, max_staleness=0).groups) == 1


@pytest.mark.parametrize("house", [{"claim_lease_s": 0.3}], indirect=True)
def test_claims_of_a_silent_consumer_are_given_back(house):
    house.play(gid(1)).result(deadline_s(10))
    assert len(house.claim().groups) == 1
    other = Client([house.endpoints], "second", timeout_s=5.0)
    assert [group.id for group in other.claim(1, 0, ANY, 10).groups] == [gid(1)]
    other.release([gid(1)])
    assert len(house.claim(wait_s=5).groups) == 1
    other.close()


def test_a_resent_claim_gets_the_same_groups_also_after_a_restart(house):
    for number in range(4):
        last = house.play(gid(number))
    last.result(deadline_s(10))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IDENTITY, b"learner/raw")
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(house.endpoints.serve)
        ask = {"schema": SCHEMA, "id": 1, "op": "claim", "count": 2, "step": 0, "max_staleness": 9, "wait_s": 0.0}
        answers = []
        for again in range(3):
            dealer.send(pack(ask))
            if again == 1:
                assert not dealer.poll(200), "what may still be arriving is not sent twice"
                until(lambda: dealer.send(pack(ask)) or dealer.poll(200), "an answer")
            assert dealer.poll(5000)
            header, index, blob = dealer.recv_multipart()
            answers.append(([group for group, _, _ in msgpack.unpackb(header)["groups"]], index, blob))
            if again == 1:
                house.restart()
    assert answers[0][0] == [gid(0), gid(1)]
    assert answers[1] == answers[0] and answers[2] == answers[0]
    assert house.client.stats().claimed == 2


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_torn_record_is_never_served_and_its_group_may_be_played_again(place, at):
    house = House(place)
    for number in (1, 2):
        house.play(gid(number), order=number).result(deadline_s(10))
    house.service.stop()
    env = lmdb.open(str(place / "spool"), max_dbs=4)
    with env.begin(write=True, db=env.open_db(b"rows")) as txn:
        key, value = next((key, value) for key, value in txn.cursor() if key.startswith(gid(1)))
        flip = {"first": 0, "middle": len(value) // 2, "last": len(value) - 1}[at]
        txn.put(key, value[:flip] + bytes([value[flip] ^ 1]) + value[flip + 1 :])
    env.close()
    house.open()
    assert [group.id for group in house.claim(wait_s=5).groups] == [gid(2)]
    assert house.client.stats().dropped == {"corrupt": 1}
    assert house.client.known([gid(1)]) == set()
    house.play(gid(1), lease=1).result(deadline_s(10))
    assert [(group.id, group.lease) for group in house.claim(wait_s=5).groups] == [(gid(1), 1)]
    house.close()


def test_a_record_that_cannot_be_decoded_is_dropped_and_the_others_served(house):
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(house.endpoints.ingest)
        entry, _ = row_of(turn(gid(1)), 1)
        close = row_of(Close(gid(1), 0, 1), 1, 1.0)
        junk = b"\xc1 is no msgpack"
        unsummed = ENTRY.pack(*Row._make(ENTRY.unpack(entry))._replace(size=len(junk)))[:-4]
        entry = unsummed + zlib.crc32(unsummed, zlib.crc32(junk)).to_bytes(4, "big")
        header = pack({"schema": SCHEMA, "kind": "rows", "batch": 1, "count": 2})
        dealer.send_multipart([header, *join([(entry, junk), close])])
        assert dealer.poll(5000)
    house.play(gid(2)).result(deadline_s(10))
    house.play(gid(3)).result(deadline_s(10))
    assert [group.id for group in house.claim(2, wait_s=5).groups] == [gid(2), gid(3)]
    assert house.client.stats().dropped == {"corrupt": 1}


@pytest.mark.parametrize("op", ["its_way", "field", "answer", "nothing"])
def test_a_request_reaches_nothing_but_requests(house, op):
    with pytest.raises(RedraftError, match="unknown request"):
        house.client._links[0].ask(op)
    assert house.client.stats().refused == 1 and house.service.alive


def test_headers_nested_too_deep_to_be_shown_are_refused(house):
    deep = b"\x91" * 1000 + b"\xc0"
    headers = [
        b"\x81\xa6schema" + deep,
        b"\x82\xa6schema\x02\xa4kind" + deep,
        b"\x83\xa6schema\x02\xa2id\x01\xa2op" + deep,
    ]
    with zmq.Context() as context:
        for endpoint in (house.endpoints.ingest, house.endpoints.serve):
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 1000)
                dealer.connect(endpoint)
                for header in headers:
                    dealer.send(header)
    until(lambda: house.client.stats().refused == 6, "six are refused")
    assert house.service.alive


def test_a_close_fails_when_a_row_of_its_play_was_refused_in_an_earlier_batch(house):
    stream = house.producer._stream(house.endpoints.ingest)
    join_rows = stream._next_batch

    def bite(now):
        batch = join_rows(now)
        if batch is not None and batch.number == 1:
            batch.frames[2] = bytes([batch.frames[2][0] ^ 1]) + batch.frames[2][1:]
        return batch

    stream._next_batch = bite
    house.add(turn(gid(1), 0))
    house.producer.flush(10)
    with pytest.raises(WireError, match="refused"):
        house.add(Close(gid(1), 0, 1), spread=1.0).result(deadline_s(10))
    house.play(gid(2)).result(deadline_s(10))
    assert house.client.stats().ready == 1


def test_malformed_messages_are_refused_counted_and_harm_nothing(house):
    generator = random.Random(1)
    house.play(gid(1)).result(deadline_s(10))
    header = {"schema": SCHEMA, "kind": "rows", "batch": 1, "count": 2}
    index, blob = join([row_of(turn(gid(9), n), 0) for n in range(2)])
    ask = {"schema": SCHEMA, "id": 1, "op": "claim", "count": 1, "step": 0, "max_staleness": 9, "wait_s": 0.0}
    odd = [None, -1, "x", b"", [], {}, 2**63, 1.5, True, [b"short"]]

    def spoil(fields):
        return pack(fields | {generator.choice(list(fields)): generator.choice(odd)})

    def bitten(frame):
        spot = generator.randrange(len(frame))
        return frame[:spot] + bytes([frame[spot] ^ (1 + generator.randrange(255))]) + frame[spot + 1 :]

    makers = {
        house.endpoints.ingest: [
            lambda: [generator.randbytes(generator.randrange(200)) for _ in range(generator.randrange(1, 6))],
            lambda: [pack(header | {"schema": 99}), index, blob],
            lambda: [pack(header), index[: generator.randrange(len(index))], blob],
            lambda: [pack(header), index, blob[: generator.randrange(len(blob))]],
            lambda: [pack(header), index, bitten(blob)],
            lambda: [pack(header | {"count": 3}), index, blob],
        ],
        house.endpoints.serve: [
            lambda: [generator.randbytes(generator.randrange(200)) for _ in range(generator.randrange(1, 4))],
            lambda: [spoil(ask | {"op": generator.choice(["commit", "abandon", "known", "resume", "corrupt", "no"])})],
            lambda: [pack({"schema": SCHEMA, "id": generator.randrange(99), "op": "__init__"})],
        ],
    }
    with zmq.Context() as context:
        for (endpoint, kinds), refused in zip(makers.items(), (300, 400), strict=True):
            with context.socket(zmq.DEALER) as dealer:  # open until all is read: a hang-up may lose what is not
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(endpoint)
                for n in range(300):
                    dealer.send_multipart(kinds[n % len(kinds)]())
                stats = until(
                    lambda least=refused: (found := house.client.stats()).refused >= least and found,
                    "all are refused",
                )
    print(f"{stats.refused} of 600 malformed messages refused (the others were requests without harm)")
    assert house.service.alive and stats.open == 0
    house.play(gid(2)).result(deadline_s(10))
    assert len(house.claim(2, wait_s=5).groups) == 2


@pytest.mark.parametrize("house", [{"max_bytes": 1 << 20}], indirect=True)
def test_a_full_spool_holds_producers_back_and_recovers(house):
    size, groups = 2000, 0
    while not house.client.stats().full:
        for _ in range(8):
            last = house.play(gid(groups), turns=4, size=size)
            groups += 1
        until(lambda last=last: last.done() or house.client.stats().full, "it is stored, or the disk is full")
    with pytest.raises(DeadlineError, match="replay at"):
        asyncio.run(house.producer.room(house.endpoints.ingest, 0.05))
    print(f"full at {house.client.stats().bytes / 2**20:.1f} MiB held of a {house.settings.map_bytes >> 20} MiB map")
    trained = []
    for step in range(groups):
        claimed = [group.id for group in house.claim(1, step, wait_s=10).groups]
        assert len(claimed) == 1
        house.client.commit(claimed, step)
        house.client.checkpoint(step)
        trained += claimed
    asyncio.run(house.producer.room(house.endpoints.ingest, 10))
    assert sorted(trained) == [gid(n) for n in range(groups)] and not house.client.stats().full


def test_back_pressure_and_every_other_wait_end_with_an_error_that_names_replay(place):
    endpoints = endpoints_in(place)
    producer, client = Producer("actor"), Client([endpoints], "learner", timeout_s=0.2)
    done = play(producer, endpoints, gid(1))
    asyncio.run(producer.room(endpoints.ingest, 0.1))
    for number in range(WINDOW_ROWS):
        producer.add(turn(gid(2), number), given(endpoints, gid(2)))
    for wait in (client.stats, lambda: producer.flush(0.1), lambda: asyncio.run(producer.room(endpoints.ingest, 0.1))):
        with pytest.raises(DeadlineError, match=f"replay at ipc://{place}"):
            wait()
    with pytest.raises(DeadlineError):
        producer.close(0.1)
    with pytest.raises(RedraftError, match="before replay acknowledged"):
        done.result(deadline_s(1))
    client.close()


def test_an_endpoint_in_use_and_a_foreign_folder_are_named(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoints = Endpoints(f"tcp://127.0.0.1:{taken.getsockname()[1]}", endpoints_in(place).serve)
        with pytest.raises(SettingError, match=r"replay\.endpoint.*port in use"):
            Service(place / "spool", endpoints, ReplaySettings(curve=False), "r").start()
        with pytest.raises(SettingError, match=r"replay\.keys.*redraft keys new"):
            Service(place / "spool", endpoints, ReplaySettings(), "r").start()
    with Service(place / "spool", endpoints_in(place), ReplaySettings(), "r"):
        assert (place / "s").stat().st_mode & 0o777 == 0o700
    with pytest.raises(SettingError, match=r"replay\.folder"):
        Service(place / "spool", endpoints_in(place), ReplaySettings(), "another").start()


def serve_elsewhere(place):
    endpoints = endpoints_in(place)
    process = processes.start(
        [sys.executable, "-c", SERVE, str(place / "spool"), endpoints.ingest, endpoints.serve],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_was_acknowledged_survives_kill_9_and_nothing_is_there_twice(place):
    kills, groups, turns = 3, 600, 8
    producers = [Producer(f"actor{n}") for n in range(2)]
    process = serve_elsewhere(place)
    acknowledged, killed_at = set(), []
    for kill in range(kills):
        closes = {}
        for number in range(kill * groups, (kill + 1) * groups):
            group = gid(number)
            closes[group] = play(producers[number % 2], endpoints_in(place), group, turns=turns, size=400)
            closes[group].add_done_callback(lambda done, group=group: done.exception() or acknowledged.add(group))
        until(lambda kill=kill: len(acknowledged) > kill * groups + groups // 4, "acknowledgements")
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(len(acknowledged))
        if kill == 0:
            _everything_acknowledged_is_stored(place / "spool", acknowledged)
        process = serve_elsewhere(place)
        for close in closes.values():
            close.result(deadline_s(20))
    client = Client([endpoints_in(place)], "learner", timeout_s=deadline_s(10.0))
    stats, total = client.stats(), kills * groups
    print(f"killed with {killed_at} groups acknowledged; {stats.ready} of {total} held, {stats.rows} rows")
    assert (stats.ready, stats.open, stats.rows) == (total, 0, total * (turns + 1))
    assert client.known([gid(n) for n in range(total)]) == acknowledged
    assert any(at % groups for at in killed_at), "no kill came under load"
    for producer in producers:
        producer.close(10)
    client.close()
    process.kill()
    process.wait()


def _everything_acknowledged_is_stored(spool, acknowledged):
    env = lmdb.open(str(spool), max_dbs=4, readonly=True, lock=False)
    with env.begin(db=env.open_db(b"groups", create=False)) as txn:
        stored = {bytes(key) for key, value in txn.cursor() if msgpack.unpackb(value[4:])[2] == 1}
    env.close()
    assert acknowledged <= stored
