"""Runs inside vLLM's worker: the bytes of a version that it holds itself before they are loaded."""

from __future__ import annotations

import threading

import torch
import torch.distributed as dist
from torch import Tensor

from protocols.broadcast import Group, Seat, address_towards, store_at


class Held:
    """A worker's, on its `device`; `rank` is its number in its engine. They come in a thread of their own, since the
    worker has steps to do."""

    def __init__(self, device: torch.device, rank: int):
        self.data: Tensor | None = None
        self._device, self._rank = device, rank
        self._thread: threading.Thread | None = None
        self._group: tuple[int, Group] | None = None
        self._problem = ""

    def receive(self, seat: Seat) -> None:
        """Begins to take part in a broadcast. Raises RuntimeError while it still takes part in another."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the one before has not ended")
        self.data, self._problem = None, ""
        self._thread = threading.Thread(target=self._take_part, args=(seat,), name="weights", daemon=True)
        self._thread.start()

    def state(self) -> str | None:
        """None while bytes come; then what went wrong, nothing where they are all here."""
        return None if self._thread is not None and self._thread.is_alive() else self._problem

    def drop(self) -> None:
        self.data = None

    def _take_part(self, seat: Seat) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            data = torch.empty(seat.size_bytes, dtype=torch.uint8, device=self._device)
            self._joined(seat).broadcast(data, seat.piece_bytes, str(self._device))
            self.data = data
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
