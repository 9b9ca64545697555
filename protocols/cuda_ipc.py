"""Memory of a GPU that processes of one node share: the learner allocates it, engine workers map it by its handle.

A handle is 64 bytes without any code in them, which CUDA's driver makes and understands (CUDA Driver API, Memory
Management: cuMemAlloc, cuIpcGetMemHandle, cuIpcOpenMemHandle and their likes). Torch's own way is for a queue of
tensors: each share is for one reader, who counts it back. Here any number reads, and who reads is known by a lock; so
the memory is not torch's but the driver's, and torch, which is not to be imported here, is handed over to look at it.

A thread that calls any of this has used the GPU through torch before, so that CUDA's context is its own.
"""

from __future__ import annotations

import ctypes
from typing import Any

LIBRARY = "libcuda.so.1"  # the driver's; torch brings none
HANDLE_BYTES = 64
PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: the memory may be on another GPU, if this one reaches it
NO_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaError(RuntimeError):
    """What the driver refused; `code` is its own, 0 where it was not asked."""

    def __init__(self, said: str, code: int = 0):
        super().__init__(said)
        self.code = code


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


class Driver:
    """CUDA's, as far as it is needed. Its methods raise CudaError, as does making one where there is no driver."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaError(f"CUDA's driver is not here: {error}") from None
        pointer = ctypes.c_uint64
        arguments = {
            "cuMemAlloc_v2": (ctypes.POINTER(pointer), ctypes.c_size_t),
            "cuMemFree_v2": (pointer,),
            "cuIpcGetMemHandle": (ctypes.POINTER(_Handle), pointer),
            "cuIpcOpenMemHandle_v2": (ctypes.POINTER(pointer), _Handle, ctypes.c_uint),
            "cuIpcCloseMemHandle": (pointer,),
            "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
        }
        for name, kinds in arguments.items():
            function = getattr(library, name)
            function.argtypes, function.restype = kinds, ctypes.c_int
        self._library = library

    def allocate(self, size: int) -> int:
        """The address of so many bytes, on the GPU that the calling thread uses."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), size)
        return pointer.value

    def free(self, pointer: int) -> None:
        """Gives back what was allocated. Nobody may have it mapped."""
        self._call("cuMemFree_v2", pointer)

    def handle_of(self, pointer: int) -> bytes:
        """By which other processes of this node map what was allocated."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), pointer)
        return bytes(handle.reserved)

    def open(self, handle: bytes) -> int:
        """The address at which memory of another process is mapped here, for the GPU that the calling thread uses."""
        pointer = ctypes.c_uint64()
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), _Handle.from_buffer_copy(handle), PEER_ACCESS)
        return pointer.value

    def close(self, pointer: int) -> None:
        """Ends a mapping. Nothing may be using it."""
        self._call("cuIpcCloseMemHandle", pointer)

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            said = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(said))
            raise CudaError(f"{name}: {(said.value or b'unknown error').decode()} ({code})", code)


def checked(handle: object, size: object) -> tuple[bytes, int]:
    """A handle and a size that came from elsewhere. Raises ValueError for anything that is not these."""
    if not isinstance(handle, bytes) or len(handle) != HANDLE_BYTES:
        raise ValueError(f"a handle of shared GPU memory is {HANDLE_BYTES} bytes")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ValueError("shared GPU memory has a whole number of bytes above 0")
    return handle, size


def view(torch: Any, pointer: int, size: int, device: Any) -> Any:
    """The bytes at an address as a tensor, uint8[size] on `device`, a torch.device with its number. It owns nothing:
    who ends the mapping sees to it that no tensor of it is used any more."""
    storage = torch._C._construct_storage_from_data_pointer(pointer, device, size)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
