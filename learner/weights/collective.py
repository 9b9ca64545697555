"""Broadcasts: how versions get from the learner to the engines of other nodes, all at once.

Actors ask for a seat in the broadcast of the newest version, again and again until they have one. It begins when all
have asked that had asked for the version before, or GATHER_S after the first; who asks later is refused. Receivers that
are those of the broadcast before keep their group; else a new one is made.

Nobody is waited for beyond a deadline. When a member dies or stands still, the broadcast has failed for all that do not
have it yet: they close their connections, at which whoever waits for them fails, too, and take this version through
the object store. The next is broadcast in a new group to who asks then. A network that lets nothing through costs less
and less: after failures in a row versions are left out, 1, 3, 7 and so on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from learner.weights.publish import Versions
from protocols.broadcast import JOIN_S, PIECE_BYTES, PIECE_S, REFUSED, Group, Seat, store_at
from protocols.weights import TRIAL

log = logging.getLogger("redraft.weights")
GATHER_S = 1.0  # actors hear of a version within some rounds of the controller, of 50 ms
LEAVE_OUT = 63  # versions at most between two tries


@dataclass(frozen=True, slots=True)
class _Asked:
    """By a receiver: for so many workers, which are of that group, and when last."""

    workers: int
    group: int
    at: float


@dataclass(slots=True)
class _Round:
    """Of one version: who asks for it, and once it has begun the seats."""

    version: int
    began: float
    asked: dict[str, _Asked] = field(default_factory=dict)
    seats: dict[str, Seat] | None = None


class Broadcasts:
    """A learner's, from `device`; `host` is the address at which others reach it. `seat` is called in any thread."""

    def __init__(self, versions: Versions, host: str, device: str, piece_bytes: int = PIECE_BYTES):
        self._versions, self._host, self._device, self._piece_bytes = versions, host, device, piece_bytes
        self._lock = threading.Lock()
        self._store: Any = None
        self._round = _Round(TRIAL, 0.0)
        self._expected: set[str] = set()
        self._number, self._members, self._group = secrets.randbelow(1 << 30), dict[str, int](), None  # no other's
        self._sending: threading.Thread | None = None
        self._sends_until = 0.0
        self._failures = self._left_out = 0

    def seat(self, version: int, reader: str, workers: int, group: int) -> Seat | Literal["refused"] | None:
        """The place of `reader`, whose engine has so many workers, in the broadcast of a version; None where it is to
        ask again soon. `group` is that of which its workers are, 0 for none."""
        with self._lock:
            if version == TRIAL or version != self._versions.newest:
                return REFUSED
            if version != self._round.version:
                self._round = _Round(version, time.monotonic())
                self._left_out -= 1
            round_, now = self._round, time.monotonic()
            if self._left_out > 0:
                return REFUSED
            if round_.seats is not None:
                self._expected.add(reader)
                return round_.seats.get(reader, REFUSED)
            round_.asked[reader] = _Asked(workers, group, now)
            if self._sending is not None and self._sending.is_alive():
                if now < self._sends_until:
                    return None
                self._give_up()
                return REFUSED
            if not (self._expected and self._expected <= round_.asked.keys()) and now < round_.began + GATHER_S:
                return None
            alive = {who: one for who, one in round_.asked.items() if now < one.at + GATHER_S}
            round_.seats = self._begun(version, alive)
            self._expected = set(round_.asked)
            return round_.seats.get(reader, REFUSED)

    def _begun(self, version: int, asked: dict[str, _Asked]) -> dict[str, Seat]:
        """Begins the broadcast; the seats in it, none where it cannot begin."""
        reading = contextlib.ExitStack()
        try:
            data = reading.enter_context(self._versions.reading(version))
            port = self._port()
        except (KeyError, RuntimeError, OSError) as error:
            log.warning("version %d is not broadcast: %s", version, error)
            reading.close()
            return {}
        members = {who: one.workers for who, one in sorted(asked.items())}
        same = members == self._members and all(one.group == self._number for one in asked.values())
        if self._group is None or not same:
            self._leave()
            self._number, self._members = self._number + 1, members
        size = 1 + sum(members.values())
        seats, rank = {}, 1
        for who, workers in members.items():
            seats[who] = Seat(self._number, self._host, port, size, rank, len(data), self._piece_bytes)
            rank += workers
        what = version, data, reading, size
        pieces = math.ceil(len(data) / self._piece_bytes)
        self._sends_until = time.monotonic() + JOIN_S + PIECE_S * pieces
        self._sending = threading.Thread(target=self._send, args=what, name="broadcast", daemon=True)
        self._sending.start()
        return seats

    def _give_up(self) -> None:
        """Leaves a broadcast behind that does not end: of members that died while NCCL made its communicator."""
        log.warning("version %d is still being broadcast after all time that it may take", self._round.version)
        self._sending, self._group = None, None
        self._failed()

    def _failed(self) -> None:
        self._failures += 1
        self._left_out = min(2 ** (self._failures - 1) - 1, LEAVE_OUT) + 1

    def _port(self) -> int:
        """Where members of a group meet, on the first call opened."""
        import torch.distributed as dist

        if self._store is None:
            self._store = store_at(dist, self._host, 0, leads=True)
        return self._store.port

    def _send(self, version: int, data: Tensor, reading: contextlib.ExitStack, size: int) -> None:
        import torch.distributed as dist

        with reading:
            try:
                group = self._group or Group(dist, self._store, self._number, 0, size, self._host, self._device)
                with self._lock:
                    goes_on = self._goes_on()
                    self._group = group if goes_on else self._group
                if not goes_on:
                    return group.close()
                group.broadcast(data, self._piece_bytes, self._device)
            except (RuntimeError, OSError) as error:
                log.warning("version %d could not be broadcast to all: %s", version, error)
                with self._lock:
                    if self._goes_on():
                        self._failed()
                        self._leave()
            else:
                with self._lock:
                    if self._goes_on():
                        self._failures = self._left_out = 0

    def _goes_on(self) -> bool:
        """Whether the thread that asks has not been left behind."""
        return self._sending is threading.current_thread()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None
