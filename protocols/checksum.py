"""An order-free checksum of all elements of a model: the same however its tensors are fused, split or zero-padded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CHUNK = 1 << 16  # elements summed at once, so that the 64-bit copies stay in the cache: five times as fast


def element_checksum(tensors: Iterable[np.ndarray]) -> str:
    """Sum of all elements' bits and sum of their squares, each modulo 2**64, as 32 hex digits.

    Elements of 2 bytes (bfloat16 viewed as uint16, float16) count as 16-bit numbers, of 4 bytes as 32-bit ones. Zeros
    add nothing. It tells which values are there, not where: it complements a digest of the bytes.
    """
    total = squares = np.uint64(0)
    with np.errstate(over="ignore"):
        for tensor in tensors:
            bits = np.ascontiguousarray(tensor).reshape(-1).view(f"<u{tensor.dtype.itemsize}")
            for start in range(0, bits.size, CHUNK):
                wide = bits[start : start + CHUNK].astype(np.uint64)
                total += wide.sum(dtype=np.uint64)
                squares += (wide * wide).sum(dtype=np.uint64)
    return f"{int(total):016x}{int(squares):016x}"


def without(checksum: str, part: str) -> str:
    """What is left of a checksum without the elements that have the checksum `part`."""
    left = ((int(checksum[n : n + 16], 16) - int(part[n : n + 16], 16)) % (1 << 64) for n in (0, 16))
    return "".join(f"{number:016x}" for number in left)
