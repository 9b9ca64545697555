"""Runs inside vLLM's worker: the bytes of a version that it holds itself before they are loaded, or has mapped."""

from __future__ import annotations

import threading

import torch
import torch.distributed as dist
from torch import Tensor

from actors.laid_out import LaidOut
from protocols.broadcast import Group, Seat, address_towards, store_at
from protocols.cuda_ipc import CudaError, Driver, checked, view

STAMP_WITHIN = 512  # bytes from the start, in which a version's stamp is


class Held:
    """A worker's, on its `device`; `rank` is its number in its engine. They come in a thread of their own, since the
    worker has steps to do."""

    def __init__(self, device: torch.device, rank: int):
        self.data: Tensor | None = None
        self._lock = threading.Lock()
        self._device, self._rank = device, rank
        self._thread: threading.Thread | None = None
        self._group: tuple[int, Group] | None = None
        self._problem = ""
        self._wanted: Seat | None = None  # in the broadcast under way, until that is given up
        self._driver: Driver | None = None
        self._mapped = 0  # where a learner's memory is mapped

    @property
    def laid(self) -> LaidOut:
        if self.data is None:
            raise RuntimeError("no version is held")
        return LaidOut(self.data)

    def wrong(self, size: int, head: str, buckets: list[tuple[int, str]]) -> str:
        """In what the version that is held differs from the one that was published."""
        return self.laid.wrong(size, head, buckets)

    def map(self, handle: bytes, size: int, stamp: str) -> str:
        """Maps the version with that stamp, which a learner on this node has on a GPU, until it is dropped: what is
        wrong where it cannot be, else "". Raises ValueError for what is no handle and no size."""
        handle, size = checked(handle, size)
        self.drop()
        try:
            self._driver = self._driver or Driver()
            self._mapped = self._driver.open(handle)
            data = view(torch, self._mapped, size, self._device)
            if f'"{stamp}"'.encode() in data[:STAMP_WITHIN].cpu().numpy().tobytes():
                self.data = data
                return ""
            problem = "what is mapped is not the version"
        except (CudaError, RuntimeError) as error:
            problem = str(error)
        self.drop()
        return problem

    def receive(self, seat: Seat) -> None:
        """Begins to take part in a broadcast. Raises RuntimeError while it still takes part in another."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the one before has not ended")
        self.data, self._problem, self._wanted = None, "", seat
        self._thread = threading.Thread(target=self._take_part, args=(seat,), name="weights", daemon=True)
        self._thread.start()

    def state(self) -> str | None:
        """None while bytes come; then what went wrong, nothing where they are all here."""
        return None if self._thread is not None and self._thread.is_alive() else self._problem

    def drop(self) -> None:
        with self._lock:
            self.data = self._wanted = None
        if self._mapped and self._driver is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # nothing reads it any more
            mapped, self._mapped = self._mapped, 0
            self._driver.close(mapped)

    def _take_part(self, seat: Seat) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            data = torch.empty(seat.size_bytes, dtype=torch.uint8, device=self._device)
            self._joined(seat).broadcast(data, seat.piece_bytes, str(self._device))
            with self._lock:
                self.data = data if self._wanted is seat else None  # else it was given up meanwhile
        except (RuntimeError, OSError) as error:  # torch's, of memory, too
            self._problem = f"{type(error).__name__}: {error}"
            self._leave()

    def _joined(self, seat: Seat) -> Group:
        if self._group is not None and self._group[0] != seat.group:
            self._leave()
        if self._group is None:
            address = address_towards(seat.host, seat.port)
            store = store_at(dist, seat.host, seat.port)
            group = Group(dist, store, seat.group, seat.rank + self._rank, seat.size, address, self._device.type)
            self._group = seat.group, group
        return self._group[1]

    def _leave(self) -> None:
        if self._group is not None:
            self._group[1].close()
        self._group = None
