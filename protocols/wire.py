"""How turns travel and rest: one record a turn or close row, many records a message.

A message that carries rows has three frames: a msgpack header, an index (numpy array of ROW), and one blob in
which the records lie end to end. The replay service reads header and index and never decodes the blob; the
record that the actor wrote is the record that the learner reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgpack
import numpy as np

from protocols.errors import WireError
from protocols.turns import LOGPROBS, TOKENS, Close, Group, Role, Stop, Turn
from protocols.weights import step_of

SCHEMA = 1
CLOSE = -1  # the `turn` of a close row
NO_VERSION = -1  # the `version` of a row in which nothing was sampled

# `version`: oldest weights version in the row. `order`: place of the lease in time. `turns`: rows that a close row
# promises. `spread`: in a close row, largest minus smallest reward of the attempts it compares. `crc`: of the record.
ROW = np.dtype(
    [
        ("group", "V16"),
        ("lease", "<i4"),
        ("turn", "<i4"),
        ("version", "<i8"),
        ("order", "<i8"),
        ("turns", "<i4"),
        ("spread", "<f4"),
        ("start", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
    ]
)


def pack(message: dict) -> bytes:
    return msgpack.packb(message, use_bin_type=True)


def unpack(frame: bytes) -> dict:
    """A header as a dict. Raises WireError when it is not one, or of another schema."""
    try:
        message = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    except Exception as error:
        raise WireError(f"header is not msgpack: {error}") from None
    if not isinstance(message, dict) or message.get("schema") != SCHEMA:
        found = message.get("schema") if isinstance(message, dict) else type(message).__name__
        raise WireError(f"schema {found!r} where {SCHEMA} is spoken")
    return message


def encode_turn(turn: Turn) -> bytes:
    if not len(turn.response) == len(turn.logprobs):
        raise WireError(f"turn {turn.turn}: {len(turn.response)} tokens but {len(turn.logprobs)} log-probs")
    return msgpack.packb(
        (
            turn.parent,
            turn.after,
            turn.index,
            turn.episode,
            int(turn.role),
            int(turn.stop),
            turn.terminated,
            turn.truncated,
            turn.reward,
            np.ascontiguousarray(turn.prompt, TOKENS).data,
            np.ascontiguousarray(turn.response, TOKENS).data,
            np.ascontiguousarray(turn.logprobs, LOGPROBS).data,
            turn.versions,
            turn.timing,
            turn.extra,
        )
    )


def decode_turn(group: bytes, lease: int, turn: int, record: bytes) -> Turn:
    """The turn of a record. Raises WireError when it is not one."""
    try:
        (parent, after, index, episode, role, stop, terminated, truncated, reward, prompt, response, logprobs, versions,
         timing, extra) = msgpack.unpackb(record, use_list=False, strict_map_key=False)  # fmt: skip
        return Turn(
            group=group,
            lease=lease,
            turn=turn,
            parent=parent,
            after=after,
            index=index,
            episode=episode,
            role=Role(role),
            stop=Stop(stop),
            terminated=terminated,
            truncated=truncated,
            reward=reward,
            prompt=np.frombuffer(prompt, TOKENS),
            response=np.frombuffer(response, TOKENS),
            logprobs=np.frombuffer(logprobs, LOGPROBS),
            versions=versions,
            timing=timing,
            extra=extra,
        )
    except Exception as error:
        raise WireError(f"turn {turn} of group {group.hex()}: {error}") from None


def encode_close(close: Close) -> bytes:
    return msgpack.packb((close.turns, close.rewards, close.extra))


def decode_close(group: bytes, lease: int, record: bytes) -> Close:
    try:
        turns, rewards, extra = msgpack.unpackb(record, use_list=False, strict_map_key=False)
    except Exception as error:
        raise WireError(f"close row of group {group.hex()}: {error}") from None
    return Close(group, lease, turns, rewards, extra)


def row_of(item: Turn | Close, order: int, spread: float = 0.0) -> tuple[np.void, bytes]:
    """The index entry (its `start` still 0) and the record of a turn or close row."""
    closing = isinstance(item, Close)
    record = encode_close(item) if closing else encode_turn(item)
    versions = () if closing else item.versions
    row = np.zeros((), ROW)
    row["group"] = np.void(item.group)
    row["lease"] = item.lease
    row["turn"] = CLOSE if closing else item.turn
    row["version"] = min((version for _, version in versions), key=step_of, default=NO_VERSION)
    row["order"] = order
    row["turns"] = item.turns if closing else 0
    row["spread"] = spread
    row["size"] = len(record)
    row["crc"] = zlib.crc32(record)
    return row[()], record


def join(rows: Sequence[tuple[np.void, bytes]]) -> tuple[bytes, bytes]:
    """Index frame and blob of some rows."""
    index = np.array([row for row, _ in rows], ROW)
    sizes = index["size"].astype(np.uint64)
    index["start"] = np.cumsum(sizes) - sizes
    return index.tobytes(), b"".join(record for _, record in rows)


def split(index_frame: bytes, blob: bytes) -> list[tuple[np.void, bytes]]:
    """The rows of a message, each record checked against its CRC. Raises WireError on the first that does not hold."""
    if len(index_frame) % ROW.itemsize:
        raise WireError(f"index of {len(index_frame)} bytes is not a multiple of {ROW.itemsize}")
    index = np.frombuffer(index_frame, ROW)
    rows, view = [], memoryview(blob)
    for row in index:
        start, size = int(row["start"]), int(row["size"])
        record = bytes(view[start : start + size])
        if not size or len(record) != size or zlib.crc32(record) != int(row["crc"]):
            raise WireError(f"row {int(row['turn'])} of group {bytes(row['group']).hex()} fails its checksum")
        rows.append((row, record))
    return rows


def whole_group(rows: Iterable[tuple[np.void, bytes]]) -> Group:
    """Decodes the rows of one group. Raises WireError unless its close row and all the turns it promises are there."""
    turns: dict[int, Turn] = {}
    close = None
    for row, record in rows:
        group, lease, turn = bytes(row["group"]), int(row["lease"]), int(row["turn"])
        if turn == CLOSE:
            close = decode_close(group, lease, record)
        else:
            turns[turn] = decode_turn(group, lease, turn, record)
    if close is None or sorted(turns) != list(range(close.turns)):
        raise WireError("a group lacks its close row or some of its turns")
    return Group(close.group, close.lease, tuple(_final(turns[n], close) for n in range(close.turns)), close.extra)


def _final(turn: Turn, close: Close) -> Turn:
    return replace(turn, reward=close.rewards[turn.turn]) if turn.turn in close.rewards else turn
