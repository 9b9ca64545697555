"""The learner's GPU as a place for versions: the newest lies there, in memory that engines of the node map.

There is one buffer, so that a version costs the GPU its size once; the trial, which stays for the whole run, is in the
host's memory. The one buffer is made after a first optimizer step, and only if that has left room: what training takes
is not known before. Until then, where there is no room, while an engine still reads the version before, and where CUDA
does not share memory, versions lie in the host's memory as on a CPU. That is said once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref

import torch

from learner.weights.memory import Label
from protocols.cuda_ipc import NO_MEMORY, CudaError, Driver, view

log = logging.getLogger("redraft.weights")
RESERVE = 0.1
"""Share of the GPU that stays free beside what training has taken at most, as `redraft plan` leaves it."""
LABEL_BYTES = 512  # of a version's first bytes: actors look for its stamp in these


class CardBuffer(Label):
    """See memory.Buffer. Its bytes lie on `device`; raises CudaError where they cannot be had, or not be shared."""

    def __init__(self, size: int, device: torch.device, driver: Driver):
        pointer = driver.allocate(size)
        try:
            self.handle = driver.handle_of(pointer)
        except CudaError:
            driver.free(pointer)
            raise
        super().__init__(LABEL_BYTES)
        self.data = view(torch, pointer, size, device)
        self._device = device
        self.close = weakref.finalize(self, _freed, driver, pointer, self._file)
        self.close.atexit = False  # the driver takes it back when the process ends, and is not to be asked then

    def __len__(self) -> int:
        return len(self.data)

    def begin(self, head: bytes) -> None:
        self.data[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(self._device)
        os.pwrite(self._file, head[:LABEL_BYTES].ljust(LABEL_BYTES), 0)

    def release(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # others see only what has been written by now
        super().release()


def _freed(driver: Driver, pointer: int, file: int) -> None:
    with contextlib.suppress(CudaError):
        driver.free(pointer)
    os.close(file)


class Card:
    """The place for one version on `device`."""

    def __init__(self, device: str):
        self._device = torch.empty(0, device=device).device  # with its number
        self._driver: Driver | None = None
        self._buffer: CardBuffer | None = None
        self._told = self._given_up = False

    def take(self, size: int) -> CardBuffer | None:
        """The buffer, claimed; None where a version has to lie elsewhere."""
        if self._given_up:
            return None
        if self._buffer is not None:
            if not self._buffer.claim():
                return None
            if len(self._buffer) == size:
                return self._buffer
            self._buffer.close()
            self._buffer = None
        if not has_room(self._device, size):
            self._tell(f"it would leave less than {RESERVE:.0%} of the GPU free")
            return None
        self._buffer = self._made(size)
        if self._buffer is not None:
            self._buffer.claim()
        return self._buffer

    def _made(self, size: int) -> CardBuffer | None:
        try:
            self._driver = self._driver or Driver()
            try:
                return CardBuffer(size, self._device, self._driver)
            except CudaError as error:
                if error.code != NO_MEMORY or self._device.type != "cuda":
                    raise
                torch.cuda.empty_cache()  # what torch keeps for later
                return CardBuffer(size, self._device, self._driver)
        except CudaError as error:
            self._given_up = error.code != NO_MEMORY
            self._tell(str(error))
            return None

    def _tell(self, why: str) -> None:
        if not self._told:
            log.warning("weights for engines of this node lie in the host's memory, not on the GPU: %s", why)
        self._told = True


def has_room(device: torch.device, size: int) -> bool:
    """Whether the GPU has room for so many bytes beside the most that this process has taken yet."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    coming = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
    return free - coming - size >= RESERVE * total
