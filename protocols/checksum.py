"""Order-free checksums of weights: the same however tensors are fused, split or zero-padded.

Both are a sum and a sum of squares, modulo 2**64. Of *words* of 8 bytes it runs at the speed of memory, and is the same
as long as what is fused or split has whole words, as rows of weights do. Of *elements* it takes several times as long,
and is the same in whatever order they lie, also transposed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Unit = Literal["words", "elements"]

CHUNK_BYTES = 1 << 18  # summed at once on a CPU, so that it stays in the cache
ELEMENTS = 1 << 16  # the same of elements, which become 64-bit numbers
DEVICE_WORDS = 1 << 24  # summed at once elsewhere, so that squares take little memory
MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Sums:
    """Sum and sum of squares, modulo 2**64. Zeros add nothing. They tell which values are there, not where."""

    total: int = 0
    squares: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums((self.total + other.total) % MODULUS, (self.squares + other.squares) % MODULUS)

    def __sub__(self, other: Sums) -> Sums:
        """What is left without the `other`."""
        return Sums((self.total - other.total) % MODULUS, (self.squares - other.squares) % MODULUS)

    def __mul__(self, times: int) -> Sums:
        return Sums(self.total * times % MODULUS, self.squares * times % MODULUS)

    def __str__(self) -> str:
        return f"{self.total:016x}{self.squares:016x}"

    @classmethod
    def of(cls, text: str) -> Sums:
        """Those that are spelled so."""
        return cls(int(text[:16], 16), int(text[16:], 16))


def summed(parts: Iterable[Sums]) -> Sums:
    return sum(parts, Sums())


def word_sums(array: np.ndarray, copy: np.ndarray | None = None) -> Sums:
    """Of an array's bytes as words of 8 bytes, zeros at the end; copies them to `copy`, uint8[bytes], on the way."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = data.size & -8
    found = _sums_of_words(data[:whole].view("<u8"), None if copy is None else copy[:whole].view("<u8"))
    if whole == data.size:
        return found
    if copy is not None:
        copy[whole:] = data[whole:]
    return found + _sums_of_words(np.pad(data[whole:], (0, whole + 8 - data.size)).view("<u8"))


def _sums_of_words(words: np.ndarray, copy: np.ndarray | None = None) -> Sums:
    total, squares, step = 0, 0, CHUNK_BYTES // 8
    room = np.empty(min(step, words.size), np.uint64)
    for start in range(0, words.size, step):
        chunk = words[start : start + step]
        if copy is not None:
            copy[start : start + step] = chunk
        total += int(np.add.reduce(chunk))
        squares += int(np.add.reduce(np.multiply(chunk, chunk, out=room[: chunk.size])))
    return Sums(total % MODULUS, squares % MODULUS)


def element_sums(tensors: Iterable[np.ndarray]) -> Sums:
    """Of all elements' bits: those of 2 bytes (bfloat16 viewed as uint16, float16) count as 16-bit numbers, of 4 bytes
    as 32-bit ones."""
    total = squares = np.uint64(0)
    with np.errstate(over="ignore"):
        for tensor in tensors:
            bits = np.ascontiguousarray(tensor).reshape(-1).view(f"<u{tensor.dtype.itemsize}")
            for start in range(0, bits.size, ELEMENTS):
                wide = bits[start : start + ELEMENTS].astype(np.uint64)
                total += wide.sum(dtype=np.uint64)
                squares += (wide * wide).sum(dtype=np.uint64)
    return Sums(int(total), int(squares))


def sums_of(tensor: Any, unit: Unit = "words") -> Sums:
    """Of one of torch's tensors, found on the device where it lies."""
    return sums_of_all([tensor], unit)


def sums_of_all(tensors: Iterable[Any], unit: Unit = "words") -> Sums:
    """Of torch's tensors together, which are asked for one by one and not kept. What lies on a GPU is added up there,
    and crosses over once."""
    here, there = Sums(), (0, 0)
    for tensor in tensors:
        flat = tensor.detach().contiguous().flatten()
        if flat.device.type != "cpu":
            there = _added(there, flat, unit)
        elif unit == "elements":
            here += element_sums([_bits(flat).numpy()])
        else:
            here += word_sums(flat.view(_kinds(flat).byte().dtype).numpy())
    return here + _crossed(there)


def device_sums(flats: Iterable[Any], unit: Unit = "words") -> Sums:
    """The same of flat tensors, by reductions of torch on their device; they wait for it once, at the end."""
    there = (0, 0)
    for flat in flats:
        there = _added(there, flat, unit)
    return _crossed(there)


def _added(there: tuple[Any, Any], flat: Any, unit: Unit) -> tuple[Any, Any]:
    """The two sums with those of one more tensor, as numbers on its device."""
    total, squares = there
    bits = _bits(flat) if unit == "elements" else _words(flat)
    for piece in bits.split(DEVICE_WORDS):
        wide = piece.long()
        if bits.element_size() < 8:
            wide = wide & ((1 << 8 * bits.element_size()) - 1)  # torch has no wide numbers without a sign
        total, squares = total + wide.sum(), squares + (wide * wide).sum()  # int64 wraps as the others do
    return total, squares


def _crossed(there: tuple[Any, Any]) -> Sums:
    total, squares = there
    return Sums(int(total) % MODULUS, int(squares) % MODULUS)


def _kinds(flat: Any) -> Any:
    """An empty tensor: torch is not to be imported here, so its types are asked of one."""
    return flat.new_empty(0)


def _bits(flat: Any) -> Any:
    """The elements of a flat tensor as whole numbers of their size, those of 8 bytes as two."""
    kinds, size = _kinds(flat), flat.element_size()
    return flat.view(kinds.byte().dtype if size == 1 else kinds.short().dtype if size == 2 else kinds.int().dtype)


def _words(flat: Any) -> Any:
    """The bytes of a flat tensor as words, zeros at the end."""
    data = flat.view(_kinds(flat).byte().dtype)
    missing = -len(data) % 8
    if missing or data.storage_offset() % 8:
        padded = data.new_zeros(len(data) + missing)
        padded[: len(data)] = data
        data = padded
    return data.view(_kinds(data).long().dtype)
