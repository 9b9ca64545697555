"""Memory that a learner shares with the engines of its node: written in place, mapped by them, gone when it dies.

It is memory without a file (memfd): no mount bounds it, as Docker's 64 MB of /dev/shm would, and nothing is left of a
process that was killed. Others open it by the learner's own `/proc/PID/fd/N`.

Who reads holds a shared lock on it (flock), which ends with the reader, however that ends; who writes takes it whole.
So a version stays as it is while anybody reads it, and nobody waits: where all memory is being read there is more.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor


class Buffer:
    """So many bytes. `data` are they, uint8[size]; `path` is where other processes of this node and user map them."""

    def __init__(self, size: int):
        self._file = os.memfd_create("redraft-weights")
        os.ftruncate(self._file, size)
        self.data: Tensor = torch.frombuffer(mmap.mmap(self._file, size), dtype=torch.uint8)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.close = weakref.finalize(self, os.close, self._file)  # its bytes go when the last who maps them does

    def __len__(self) -> int:
        return len(self.data)

    def claim(self) -> bool:
        """Takes it for writing, unless it is being read."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Lets others read it."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Tensor]:
        """Its bytes, read in this process, as others do it. Raises BlockingIOError while it is claimed."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield self.data
        finally:
            os.close(file)


class Memory:
    """Buffers that come back: their pages are there already, which new ones would have to be given by the kernel."""

    def __init__(self) -> None:
        self._spare: list[Buffer] = []

    def take(self, size: int) -> Buffer:
        """A buffer of that size, claimed."""
        free = [buffer for buffer in self._spare if buffer.claim()]
        self._spare = [buffer for buffer in self._spare if buffer not in free]
        fits = [buffer for buffer in free if len(buffer) == size]
        for buffer in free:
            if buffer not in fits[:1]:
                buffer.close()
        if fits:
            return fits[0]
        made = Buffer(size)
        made.claim()
        return made

    def give(self, buffer: Buffer) -> None:
        """Back, though it may still be read."""
        self._spare.append(buffer)
