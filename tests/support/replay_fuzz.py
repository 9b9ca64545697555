"""Malformed messages for both endpoints of a replay service, from a seed.

Each message says whether it is certainly bad, so that it has to be refused and counted. The others are valid by luck,
or odd but well-formed (a row of strange values, a request about unknown groups): they may change what belongs to the
ids of this generator, and nothing else. Requests that would change the groups of others (claim, offer, resume,
checkpoint) are always spoiled.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import msgpack

from protocols.turns import Close
from protocols.wire import CRC, ENTRY, SCHEMA, UNSUMMED, Row, join, pack, row_of
from support.replay_house import gid, rows_of

OWNER = 666  # of the ids that appear here
LAST = 2**31 - 1  # the largest number of a request
INT_LIMITS = {"lease": 2**31, "turn": 2**31, "turns": 2**31, "order": 2**63, "version": 2**63}
NOT_MAPS = [[], [1, 2], 7, "text", b"bytes", None, True, 1.5, msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)]
NOT_COUNTS = [None, -1, -(2**63), 2**63, 2**64 - 1, "1", b"1", 1.0, True, [], {}, msgpack.ExtType(1, b"\1")]
NOT_SCHEMAS = [None, 0, -1, SCHEMA + 1, 2**64 - 1, str(SCHEMA), [SCHEMA], {}, msgpack.ExtType(2, b"")]
NOT_NUMBERS = [None, -1, -0.5, 2**31, 2**64 - 1, float("nan"), float("inf"), "1", b"", [], {}, True]
NOT_INTEGERS = [*NOT_NUMBERS, 1.5]
NOT_IDS = [None, 7, "x" * 16, b"", b"x" * 15, b"x" * 17, [b"short"], [None], [[b"x" * 16]], {}, True, [b"x" * 16, 1]]
NOT_PRIORITIES = [[], [1.0] * 9, 5, "xy", {}, [None, 1.0], [float("nan"), 1.0], ["x", "y"], [-1.0, 1.0], [[], []]]
NOT_COLUMNS = [None, 7, "xy", [], [1], [1] * 3, {}, *([1, value] for value in (None, -1, 1.5, "1", True, 2**64 - 1))]
NOT_OPS = ["", "no_such", "__init__", "claim ", "Claim", "clai\0m", "receive", "op" * 5000, "\N{GREEK SMALL LETTER MU}"]


@dataclass(frozen=True, slots=True)
class Message:
    """`flipped`: it may by luck have a high request number, after which lower ones of its sender are old news."""

    frames: list[bytes]
    bad: bool
    flipped: bool = False


class Fuzz:
    """`rows` and `request` make one message each, for the ingest and for the serve endpoint."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._ids = [gid(OWNER, number) for number in range(48)]
        self._rows = [
            [row_of(item, number, 1.0 if isinstance(item, Close) else 0.0) for item in rows_of(group)]
            for number, group in enumerate(self._ids)
        ]
        self._number = 0
        self._bad_rows = [
            self._frames_of_another_number,
            self._cut_header,
            self._other_schema,
            self._other_header_field,
            self._no_map,
            self._nested,
            self._not_utf8,
            self._cut_index,
            self._cut_blob,
            self._longer_blob,
            self._flipped_entry,
            self._flipped_record,
            self._wrong_size,
            self._impossible_row,
            self._swapped,
            self._noise,
        ]
        self._odd_rows = [self._flipped_header, self._odd_row, self._sound_rows, self._room]
        self._spoilt = {
            "claim": {"count": [0, *NOT_INTEGERS], "step": NOT_INTEGERS, "max_staleness": NOT_INTEGERS,
                      "wait_s": NOT_NUMBERS},
            "offer": {"count": [0, *NOT_INTEGERS], "step": NOT_INTEGERS, "max_staleness": NOT_INTEGERS},
            "commit": {"ids": NOT_IDS, "step": NOT_INTEGERS, "priorities": NOT_PRIORITIES},
            "checkpoint": {"step": NOT_INTEGERS},
            "resume": {"step": NOT_INTEGERS},
            "known": {"ids": NOT_IDS},
            "release": {"ids": NOT_IDS},
            "corrupt": {"ids": NOT_IDS},
            "abandon": {"group": [[], *NOT_IDS], "lease": NOT_INTEGERS},
            "lease": {"ids": NOT_IDS} | dict.fromkeys(("leases", "orders", "versions"), NOT_COLUMNS),
        }  # fmt: skip
        self._bad_requests = [
            self._spoilt_request,
            self._spoilt_request,
            self._unknown_op,
            self._bad_op,
            self._bad_id,
            self._cut_request,
            self._requests_schema,
            self._no_map_request,
            self._nested_request,
            self._not_utf8_request,
            self._request_of_more_frames,
            self._noise_request,
        ]

    def rows(self, odd: bool) -> Message:
        return self._choose(self._odd_rows if odd else self._bad_rows, odd)

    def request(self, odd: bool) -> Message:
        return self._choose([self._flipped_request, self._odd_request] if odd else self._bad_requests, odd)

    def last_rows(self) -> Message:
        """A sound message of rows, with a batch number that no other has."""
        header, index, blob = self._message()
        return Message([pack(header | {"batch": LAST}), index, blob], False)

    def last_request(self) -> Message:
        return Message([pack(self._ask("stats") | {"id": LAST})], False)

    def _choose(self, makers: list[Callable[[], list[bytes]]], odd: bool) -> Message:
        self._number += 1
        maker = self._random.choice(makers)
        return Message(maker(), not odd, maker == self._flipped_request)

    # -- rows

    def _message(self) -> tuple[dict, bytes, bytes]:
        """A sound message of 1 to 4 rows: header, index and blob."""
        rows = self._random.choice(self._rows)
        some = self._random.sample(rows, self._random.randint(1, min(4, len(rows))))
        return {"schema": SCHEMA, "kind": "rows", "batch": self._number, "count": len(some)}, *join(some)

    def _frames_of_another_number(self) -> list[bytes]:
        header, index, blob = self._message()
        frames = [pack(header), index, blob, b"", b"more", index]
        return frames[: self._random.choice([1, 2, 4, 5, 6])]

    def _cut_header(self) -> list[bytes]:
        header, index, blob = self._message()
        return [self._cut(pack(header)), index, blob]

    def _other_schema(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header | {"schema": self._random.choice(NOT_SCHEMAS)}), index, blob]

    def _other_header_field(self) -> list[bytes]:
        header, index, blob = self._message()
        name = self._random.choice(["batch", "count", "kind"])
        if self._random.random() < 0.2:
            del header[name]
        elif name == "count" and self._random.random() < 0.5:
            header["count"] += self._random.choice([-1, 1, 2**31, 2**62])
        else:
            header[name] = self._random.choice(NOT_COUNTS)
        return [pack(header), index, blob]

    def _no_map(self) -> list[bytes]:
        _, index, blob = self._message()
        return [msgpack.packb(self._random.choice(NOT_MAPS)), index, blob]

    def _nested(self) -> list[bytes]:
        _, index, blob = self._message()
        return [self._deep(), index, blob]

    def _not_utf8(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header).replace(b"rows", b"r\xff\xfes"), index, blob]

    def _cut_index(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header), self._cut(index), blob]

    def _cut_blob(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header), index, self._cut(blob)]

    def _longer_blob(self) -> list[bytes]:
        header, index, blob = self._message()
        size = 1 << 20 if self._random.random() < 0.002 else self._random.randint(1, 64)
        return [pack(header), index, blob + self._random.randbytes(size)]

    def _flipped_entry(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header), self._flip(index), blob]

    def _flipped_record(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header), index, self._flip(blob)]

    def _wrong_size(self) -> list[bytes]:
        """Records that overlap, leave the blob, or are huge or empty; the checksums are of what the index says."""
        header, index, blob = self._message()
        sizes = [0, 1, 2**32 - 1, 2**31, len(blob), len(blob) + 1]
        entry = Row._make(ENTRY.unpack_from(index))
        wrong = self._random.choice([size for size in sizes if size != entry.size])
        return [pack(header), entry_of(entry._replace(size=wrong), blob[:wrong]) + index[ENTRY.size :], blob]

    def _impossible_row(self) -> list[bytes]:
        name, least = self._random.choice([("lease", 0), ("turn", -1), ("turns", 0)])
        return self._changed(**{name: self._random.choice([least - 1, -(2**31)])})

    def _swapped(self) -> list[bytes]:
        header, index, blob = self._message()
        frames = [pack(header), index, blob]
        self._random.shuffle(frames)
        return frames if frames[0] != pack(header) else [frames[0], blob, index]

    def _noise(self) -> list[bytes]:
        return [self._random.randbytes(self._random.randrange(300)) for _ in range(self._random.randint(1, 5))]

    def _flipped_header(self) -> list[bytes]:
        header, index, blob = self._message()
        return [self._flip(pack(header)), index, blob]

    def _odd_row(self) -> list[bytes]:
        """A row of strange values, soundly summed: may be stored, under its own id."""
        name = self._random.choice([*INT_LIMITS, "spread"])
        if name == "spread":
            return self._changed(spread=self._random.choice([float("nan"), float("inf"), -1e38, 0.0]))
        limit = INT_LIMITS[name]
        return self._changed(**{name: self._random.choice([0, 1, limit - 1, limit // 2, -limit, -1])})

    def _sound_rows(self) -> list[bytes]:
        header, index, blob = self._message()
        return [pack(header), index, blob]

    def _room(self) -> list[bytes]:
        return [pack({"schema": SCHEMA, "kind": "room"})]

    def _changed(self, **values) -> list[bytes]:
        """One row with other values in its entry and the checksum that belongs to them."""
        entry, record = self._random.choice(self._random.choice(self._rows))
        row = Row._make(ENTRY.unpack(entry))._replace(**values)
        header = {"schema": SCHEMA, "kind": "rows", "batch": self._number, "count": 1}
        return [pack(header), entry_of(row, record), record]

    # -- requests

    def _ask(self, op, **fields) -> dict:
        return {"schema": SCHEMA, "id": self._number, "op": op, "wait_s": 0.0, **fields}

    def _sound_request(self, op: str) -> dict:
        ids = self._random.sample(self._ids, 2)
        every = {"ids": ids, "group": ids[0], "lease": 1, "count": 1, "step": 1, "max_staleness": 1, "priorities": None}
        every |= dict.fromkeys(("leases", "orders", "versions"), [1, 1])
        return self._ask(op, **{name: every[name] for name in self._spoilt.get(op, ()) if name in every})

    def _spoilt_request(self) -> list[bytes]:
        op, spoilt = self._random.choice(list(self._spoilt.items()))
        name = self._random.choice(list(spoilt))
        return [pack(self._sound_request(op) | {name: self._random.choice(spoilt[name])})]

    def _unknown_op(self) -> list[bytes]:
        return [pack(self._ask(self._random.choice(NOT_OPS)))]

    def _bad_op(self) -> list[bytes]:
        return [pack(self._ask(self._random.choice([*NOT_COUNTS[:5], b"claim", 1.5, True, [], {}, ["claim"]])))]

    def _bad_id(self) -> list[bytes]:
        request = self._sound_request("known")
        if self._random.random() < 0.1:
            del request["id"]
            return [pack(request)]
        return [pack(request | {"id": self._random.choice(NOT_INTEGERS)})]

    def _cut_request(self) -> list[bytes]:
        return [self._cut(pack(self._sound_request(self._random.choice(list(self._spoilt)))))]

    def _requests_schema(self) -> list[bytes]:
        return [pack(self._sound_request("claim") | {"schema": self._random.choice(NOT_SCHEMAS)})]

    def _no_map_request(self) -> list[bytes]:
        return [msgpack.packb(self._random.choice(NOT_MAPS))]

    def _nested_request(self) -> list[bytes]:
        return [self._deep()]

    def _not_utf8_request(self) -> list[bytes]:
        return [pack(self._ask("known")).replace(b"known", b"\xffnow\xc0")]

    def _request_of_more_frames(self) -> list[bytes]:
        request = pack(self._sound_request("known"))
        return [request, *[request] * self._random.randint(1, 4)]

    def _noise_request(self) -> list[bytes]:
        return [self._random.randbytes(self._random.randrange(300))]

    def _flipped_request(self) -> list[bytes]:
        op = self._random.choice(["known", "release", "corrupt", "stats"])
        return [self._flip(pack(self._sound_request(op)))]

    def _odd_request(self) -> list[bytes]:
        op = self._random.choice(["known", "release", "corrupt", "commit", "abandon", "stats"])
        return [pack(self._sound_request(op))]

    # -- bytes

    def _cut(self, frame: bytes) -> bytes:
        return frame[: self._random.randrange(len(frame))]

    def _flip(self, frame: bytes) -> bytes:
        spot = self._random.randrange(len(frame))
        return frame[:spot] + bytes([frame[spot] ^ self._random.randint(1, 255)]) + frame[spot + 1 :]

    def _deep(self) -> bytes:
        """Arrays or maps within each other, up to 20,000 deep."""
        level = self._random.choice(
            [b"\x91", b"\x81\xa1a", b"\x81\x91", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"]
        )
        return level * int(10 ** self._random.uniform(0, 4.3)) + self._random.choice([b"", b"\xc0"])


def entry_of(row: Row, record: bytes) -> bytes:
    """The entry of a row with the checksum that belongs to it and its record."""
    unsummed = ENTRY.pack(*row)[:UNSUMMED]
    return unsummed + CRC.pack(zlib.crc32(unsummed, zlib.crc32(record)))
