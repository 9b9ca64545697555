"""Memory that a learner shares with the engines of its node: written in place, mapped by them, gone when it dies.

In the host it is memory without a file (memfd): no mount bounds it, as Docker's 64 MB of /dev/shm would, and nothing is
left of a process that was killed. Others open it by the learner's own `/proc/PID/fd/N`. On a GPU it is the driver's
(learner.weights.card), and that file holds only the first bytes.

Who reads holds a shared lock on the file (flock), which ends with the reader, however that ends; who writes takes it
whole. So a version stays as it is while anybody reads it, and nobody waits: where all memory is being read there is
more.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Label:
    """A file without a name that others open by `path`, and the lock on it."""

    def __init__(self, size: int):
        self._file = os.memfd_create("redraft-weights")
        os.ftruncate(self._file, size)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"

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
    def locked(self) -> Iterator[None]:
        """Locks it in this process, as others do to read. Raises BlockingIOError while it is claimed."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield
        finally:
            os.close(file)


class Buffer(Protocol):
    """So many bytes, uint8[size] in `data`; `path` is where other processes of this node and user lock them.

    They map them there, or where there is a `handle` by that.
    """

    data: Tensor
    path: str
    handle: bytes

    def __len__(self) -> int: ...

    def begin(self, head: bytes) -> None:
        """Writes the first bytes, which say what lies there."""

    def release(self) -> None:
        """Lets others read it, once all that was written is there."""

    def locked(self) -> contextlib.AbstractContextManager[None]: ...


class HostBuffer(Label):
    """See Buffer."""

    handle = b""

    def __init__(self, size: int):
        super().__init__(size)
        self.data: Tensor = torch.frombuffer(mmap.mmap(self._file, size), dtype=torch.uint8)
        self.close = weakref.finalize(self, os.close, self._file)  # its bytes go when the last who maps them does

    def __len__(self) -> int:
        return len(self.data)

    def begin(self, head: bytes) -> None:
        self.data[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)


class Memory:
    """Buffers that come back: their pages are there already, which new ones would have to be given by the kernel."""

    def __init__(self) -> None:
        self._spare: list[HostBuffer] = []

    def take(self, size: int) -> HostBuffer:
        """A buffer of that size, claimed."""
        free = [buffer for buffer in self._spare if buffer.claim()]
        self._spare = [buffer for buffer in self._spare if buffer not in free]
        fits = [buffer for buffer in free if len(buffer) == size]
        for buffer in free:
            if buffer not in fits[:1]:
                buffer.close()
        if fits:
            return fits[0]
        made = HostBuffer(size)
        made.claim()
        return made

    def give(self, buffer: Buffer) -> None:
        """Back, though it may still be read. That of a GPU is kept by its own."""
        if isinstance(buffer, HostBuffer):
            self._spare.append(buffer)
