"""Broadcasts of weights: who takes part in one, and how its bytes get from the learner to all of them.

Both sides keep to this page. They hand over `torch.distributed`, which is not to be imported here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

REFUSED = "refused"  # in place of a seat: the version is to be had in another way
JOIN_S = 10.0  # that members of a new group wait for each other; it takes a tenth of a second
PIECE_S = 10.0  # that a piece may take; a slow network of 1 Gbit/s moves one in half a second
PIECE_BYTES = 64 << 20
LOOK_S = 0.0005  # between two looks whether a piece has come
UNLIMITED = timedelta(days=1)  # for waits that end by another deadline


@dataclass(frozen=True, slots=True)
class Seat:
    """A receiver's place in the broadcast of `size_bytes`, which come in pieces.

    The `group` meets at `host`:`port`. It has `size` processes: the learner is rank 0, the receiver's workers are
    `rank` and those after it.
    """

    group: int
    host: str
    port: int
    size: int
    rank: int
    size_bytes: int
    piece_bytes: int


class Group:
    """Processes that get bytes from rank 0: by gloo on a CPU, by NCCL on GPUs. No wait in it is without a deadline but
    the making of an NCCL communicator, of which a member may die: so who uses it does so in a thread of its own.

    Raises RuntimeError where not all come within JOIN_S.
    """

    def __init__(self, dist: Any, store: Any, group: int, rank: int, size: int, address: str, device: str):
        self._dist = dist
        store = dist.PrefixStore(f"weights-{group}", store)
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=JOIN_S)
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        self._group = self._met = dist.ProcessGroupGloo(store, rank, size, options)
        self._met.barrier().wait(options._timeout)
        if device != "cpu":
            self._group = _nccl(dist, store, rank, size)

    def broadcast(self, data: Any, piece_bytes: int, device: str) -> None:
        """Fills `data`, uint8[size], with that of rank 0. Raises RuntimeError where a piece does not come in time."""
        options = self._dist.BroadcastOptions()
        options.rootRank, options.timeout = 0, timedelta(seconds=PIECE_S)
        for start in range(0, len(data), piece_bytes):
            part = data[start : start + piece_bytes]
            piece = part.to(device)  # itself where it lies there
            self._wait(self._group.broadcast([piece], options))
            if piece.device != part.device:
                part.copy_(piece)

    def close(self) -> None:
        """Ends all connections, so that members that still wait for this one fail at once."""
        if self._group is not self._met:
            self._group.abort()
        del self._group, self._met

    def _wait(self, work: Any) -> None:
        until = time.monotonic() + PIECE_S
        while not work.is_completed():
            if time.monotonic() > until:
                raise RuntimeError(f"a piece did not come within {PIECE_S:g} s")
            time.sleep(LOOK_S)
        work.wait()  # raises what went wrong, with gloo
        if self._group is not self._met and (error := work.exception()) is not None:
            raise RuntimeError(str(error))


def _nccl(dist: Any, store: Any, rank: int, size: int) -> Any:
    """The group on GPUs. Its own watch would end this process where another dies, so it is told to leave that be."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = UNLIMITED
    with _environment("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"):
        return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)


def store_at(dist: Any, host: str, port: int, leads: bool = False) -> Any:
    """Where groups meet: that of the learner, which `leads` and has any free port where it is 0. Raises RuntimeError
    where it does not answer."""
    return dist.TCPStore(host, port, is_master=leads, timeout=timedelta(seconds=JOIN_S), wait_for_workers=False)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def address_towards(host: str, port: int) -> str:
    """This machine's address on the way to another, by which that one can reach it. Sends nothing."""
    family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)
        return probe.getsockname()[0]
