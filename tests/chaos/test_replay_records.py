"""Records that are no turn and no close row, under a checksum that is right: the learner drops them and lives on."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from pathlib import Path

import msgpack
import pytest
import zmq
from support.replay_fuzz import entry_of
from support.replay_house import ANY, client_of, endpoints_in, gid, play, producer_of, turn_of
from support.waiting import deadline_s

from protocols.turns import Close
from protocols.wire import ENTRY, SCHEMA, Row, encode_turn, join, pack, row_of
from replay.config import ReplaySettings
from replay.server.service import Service

DEADLINE_S = 20.0
BAD, HONEST = gid(666, 0), gid(1, 1)
LEARNER_BYTES = 50 << 20  # that a small record may make the learner take


def hostile_closes() -> dict[str, bytes]:
    """Records that are no close row of a group of one turn."""
    return {
        "close is noise": b"\xc1\xff",
        "close is a map": msgpack.packb({}),
        "too few fields": msgpack.packb((1, {})),
        "turns is text": msgpack.packb(("1", {}, {})),
        "turns is a float": msgpack.packb((1.0, {}, {})),
        "turns is nothing": msgpack.packb((None, {}, {})),
        "turns is negative": msgpack.packb((-1, {}, {})),
        "turns is another number": msgpack.packb((2, {}, {})),
        "turns is huge": msgpack.packb((2**63, {}, {})),
        "turns fills memory": msgpack.packb((2**22, {}, {})),
        "rewards is a number": msgpack.packb((1, 5, {})),
        "a reward is text": msgpack.packb((1, {0: "much"}, {})),
        "extra is a list": msgpack.packb((1, {}, [1])),
        "not utf-8": b"\x93\x01\x80\x81\xa2\xff\xff\x01",
        "close is deep": b"\x91" * 5000,
        "close is a huge array": struct.pack(">BI", 0xDD, 2**32 - 1),
    }


def hostile_turns() -> dict[str, bytes]:
    """Records that are no turn."""
    fields = list(msgpack.unpackb(encode_turn(turn_of(BAD, 0))))

    def with_field(place: int, value) -> bytes:
        return msgpack.packb([*fields[:place], value, *fields[place + 1 :]])

    return {
        "turn is noise": b"\xc1",
        "turn has a field less": msgpack.packb(fields[:-1]),
        "parent is text": with_field(0, "0"),
        "role is unknown": with_field(4, 99),
        "the turn's reward is text": with_field(8, "1"),
        "prompt is no array of int32": with_field(9, b"123"),
        "prompt is text": with_field(9, "abcd"),
        "fewer log-probs than tokens": with_field(11, fields[11][:-4]),
        "versions is a number": with_field(12, 5),
        "the turn's extra is a number": with_field(14, 5),
    }


@pytest.fixture
def endpoints():
    """Of a running service."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        endpoints = endpoints_in(Path(folder))
        with Service(Path(folder) / "spool", endpoints, ReplaySettings(), "run"):
            yield endpoints


def with_record(packed: tuple[bytes, bytes], record: bytes | None) -> tuple[bytes, bytes]:
    """The row with another record, under a checksum that is right."""
    if record is None:
        return packed
    row = Row._make(ENTRY.unpack(packed[0]))
    return entry_of(row._replace(size=len(record)), record), record


def send_group(ingest: str, group: bytes, turn: bytes | None, close: bytes | None) -> None:
    """A whole group of one turn, with these records in place of sound ones."""
    rows = [
        with_record(row_of(turn_of(group, 0), 0), turn),
        with_record(row_of(Close(group, 0, 1), 0, 1.0), close),
    ]
    header = pack({"schema": SCHEMA, "kind": "rows", "batch": 1, "count": 2})
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(ingest)
        dealer.send_multipart([header, *join(rows)])
        assert dealer.poll(1000 * deadline_s(DEADLINE_S)), "no answer"


@pytest.mark.parametrize("kind", [*hostile_turns(), *hostile_closes()])
def test_a_record_that_is_none_is_dropped_and_the_others_are_served(endpoints, kind):
    """Only who decodes it can tell; that is the learner, which must live on and get the other groups."""
    send_group(endpoints.ingest, BAD, hostile_turns().get(kind), hostile_closes().get(kind))
    producer, client = producer_of("actor"), client_of(endpoints, "learner")
    try:
        play(producer, HONEST, endpoints.ingest).result(deadline_s(DEADLINE_S))
        tracemalloc.start()
        groups = client.claim(1, 0, ANY, 5.0).groups
        peak = tracemalloc.get_traced_memory()[1]
        assert [group.id for group in groups] == [HONEST], "the honest group comes later and is served"
        assert client.stats().dropped == {"corrupt": 1}
        assert peak < LEARNER_BYTES, f"it made the learner take {peak >> 20} MiB"
    finally:
        tracemalloc.stop()
        producer.close(deadline_s(DEADLINE_S))
        client.close()
