"""How turns travel and rest: one record a turn or close row, many records a message.

A message that carries rows has three frames: a msgpack header, an index (a fixed-size entry a row), and one blob in
which the records lie end to end, in the order of the index. The replay service reads header and index and never decodes
the blob; the record that the actor wrote is the record that the learner reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
import numpy as np

from protocols.errors import WireError
from protocols.turns import LOGPROBS, TOKENS, Close, Group, Role, Stop, Turn
from protocols.weights import step_of

SCHEMA = 3
CLOSE = -1  # the `turn` of a close row
NO_VERSION = -1  # the `version` of a row in which nothing was sampled
ENTRY = struct.Struct(">16siiqqifII")  # a Row
CRC = struct.Struct(">I")  # the last field of an entry
INTEGERS = (int,) * 4
PLAY_BYTES = 20  # an entry begins with group and lease: they name the play
KEY_BYTES = 24  # and turn: they name the row
UNSUMMED = ENTRY.size - CRC.size


class Row(NamedTuple):
    """What the index says of a record.

    `version`: oldest weights version in it. `order`: place of the lease in time. `turns`: what a close row promises.
    `spread`: in a close row, largest minus smallest reward of the attempts it compares; not a number where every
    episode broke off. `size`: bytes of the record.
    `crc`: CRC-32 of the record and of the entry up to this field.
    """

    group: bytes
    lease: int
    turn: int
    version: int
    order: int
    turns: int
    spread: float
    size: int
    crc: int


Bytes = bytes | memoryview  # what was received or read is a view, so that nothing is copied
Packed = tuple[Bytes, Bytes]  # entry and record of a row


def pack(message: Any) -> bytes:
    return msgpack.packb(message, use_bin_type=True)  # pyright: ignore[reportReturnType]  None only of a Packer


def shown(value) -> str:
    """A short text of something that a peer sent; it may be nested too deep for `repr`."""
    try:
        return repr(value)[:80]
    except RecursionError:
        return f"a deep {type(value).__name__}"


def unpack(frame: bytes) -> dict:
    """A header as a dict. Raises WireError when it is not one, or of another schema."""
    try:
        message = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    except Exception as error:
        raise WireError(f"header is not msgpack: {error}") from None
    if not isinstance(message, dict) or message.get("schema") != SCHEMA:
        found = message.get("schema") if isinstance(message, dict) else type(message).__name__
        raise WireError(f"schema {shown(found)} where {SCHEMA} is spoken")
    return message


def encode_turn(turn: Turn) -> bytes:
    if not len(turn.response) == len(turn.logprobs):
        raise WireError(f"turn {turn.turn}: {len(turn.response)} tokens but {len(turn.logprobs)} log-probs")
    return pack(
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


def decode_turn(group: bytes, lease: int, turn: int, record: Bytes) -> Turn:
    """The turn of a record. Raises WireError when it is not one."""
    try:
        (parent, after, index, episode, role, stop, terminated, truncated, reward, prompt, response, logprobs, versions,
         timing, extra) = msgpack.unpackb(record, use_list=False, strict_map_key=False)  # fmt: skip
        if not (
            (type(parent), type(after), type(index), type(episode)) == INTEGERS
            and parent < turn
            and type(prompt) is type(response) is type(logprobs) is bytes
            and len(response) == len(logprobs)
            and all(type(start) is type(version) is int for start, version in versions)
            and type(reward) in (float, int)
            and type(extra) is dict
        ):
            raise TypeError("a field has another type than it should, or its parent comes later")
        queued_s, generating_s, environment_s = map(float, timing)
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
            reward=float(reward),
            prompt=np.frombuffer(prompt, TOKENS),
            response=np.frombuffer(response, TOKENS),
            logprobs=np.frombuffer(logprobs, LOGPROBS),
            versions=versions,
            timing=(queued_s, generating_s, environment_s),
            extra=extra,
        )
    except Exception as error:
        raise WireError(f"turn {turn} of group {group.hex()}: {error}") from None


def encode_close(close: Close) -> bytes:
    return pack((close.turns, close.rewards, close.extra))


def decode_close(group: bytes, lease: int, record: Bytes) -> Close:
    try:
        turns, rewards, extra = msgpack.unpackb(record, use_list=False, strict_map_key=False)
        if type(turns) is not int or type(extra) is not dict:
            raise TypeError("a field has another type than it should")
        return Close(group, lease, turns, {int(turn): float(reward) for turn, reward in rewards.items()}, extra)
    except Exception as error:
        raise WireError(f"close row of group {group.hex()}: {error}") from None


def row_of(item: Turn | Close, order: int, spread: float = 0.0) -> Packed:
    """The index entry and the record of a turn or close row. Raises WireError when it cannot be encoded."""
    closing = isinstance(item, Close)
    turn, turns = (CLOSE, item.turns) if closing else (item.turn, 0)
    try:
        record = encode_close(item) if closing else encode_turn(item)
        version = NO_VERSION if closing else _oldest(item.versions)
        unsummed = ENTRY.pack(item.group, item.lease, turn, version, order, turns, spread, len(record), 0)[:UNSUMMED]
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise WireError(f"turn {turn} of group {item.group.hex()}: {error}") from None
    return unsummed + CRC.pack(crc32(unsummed, crc32(record))), record


def _oldest(versions: Sequence[tuple[int, int]]) -> int:
    if len(versions) == 1:
        return versions[0][1]
    return min((version for _, version in versions), key=step_of, default=NO_VERSION)


def join(rows: Sequence[Packed]) -> tuple[bytes, bytes]:
    """Index frame and blob of some rows."""
    return b"".join([entry for entry, _ in rows]), b"".join([record for _, record in rows])


def split(index: bytes, blob: Bytes) -> list[tuple[Row, Packed]]:
    """The rows of a message; records are views into `blob`. Raises WireError unless all of it is whole."""
    if len(index) % ENTRY.size:
        raise WireError(f"index of {len(index)} bytes is not a multiple of {ENTRY.size}")
    rows, view, start = [], memoryview(blob), 0
    for number, row in enumerate(map(Row._make, ENTRY.iter_unpack(index))):
        entry = index[number * ENTRY.size : (number + 1) * ENTRY.size]
        record = view[start : start + row.size]
        if not sound(row, entry, record):
            raise WireError(f"row {row.turn} of group {row.group.hex()} fails its checksum")
        start += row.size
        rows.append((row, (entry, record)))
    if start != len(view):
        raise WireError(f"the index names {start} bytes of a blob of {len(view)}")
    return rows


def sound(row: Row, entry: Bytes, record: Bytes) -> bool:
    """Whether entry and record are the bytes that were written."""
    return 0 < row.size == len(record) and crc32(entry[:UNSUMMED], crc32(record)) == row.crc


def whole_group(rows: Iterable[tuple[Row, Packed]]) -> Group:
    """Decodes the rows of one group. Raises WireError unless its close row and all the turns it promises are there."""
    turns: dict[int, Turn] = {}
    close = None
    for row, (_, record) in rows:
        if row.turn == CLOSE:
            close = decode_close(row.group, row.lease, record)
        else:
            turns[row.turn] = decode_turn(row.group, row.lease, row.turn, record)
    if close is None or len(turns) != close.turns or max(turns, default=-1) != close.turns - 1:
        raise WireError("a group lacks its close row or some of its turns")
    return Group(close.group, close.lease, tuple(_final(turns[n], close) for n in range(close.turns)), close.extra)


def _final(turn: Turn, close: Close) -> Turn:
    return replace(turn, reward=close.rewards[turn.turn]) if turn.turn in close.rewards else turn
