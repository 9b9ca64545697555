"""A version's bytes as they lie somewhere: in a file, in memory that is mapped, or in a GPU's."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.checksum import Sums, Unit, sums_of, sums_of_all

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_BYTES = 8  # of the header, which follows


class LaidOut:
    """Those of a safetensors file, `data` uint8[size] on any device. Nothing is read of them that `wrong` has not found
    right."""

    def __init__(self, data: Tensor):
        self.data = data
        length = int.from_bytes(data[:LENGTH_BYTES].cpu().numpy().tobytes(), "little")
        self._start = min(len(data), LENGTH_BYTES + length)

    @classmethod
    def at(cls, path: str | Path) -> LaidOut:
        """Those of a file, which are mapped."""
        import torch

        with open(path, "rb") as file:
            size = Path(path).stat().st_size
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray()
        return cls(torch.frombuffer(mapped, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8))

    def wrong(self, size: int, head: str, buckets: Sequence[tuple[int, str]]) -> str:
        """In what they differ from what was published, nothing where they are that: so many bytes, the sums of the
        header, and how many tensors each bucket has, with their sums."""
        if len(self.data) != size:
            return f"{len(self.data):,} bytes have come, {size:,} were published"
        if str(sums_of(self.data[: self._start])) != head:
            return "its header is not the one that was published"
        tensors = iter(self.tensors())
        for count, sums in buckets:
            mine = list(islice(tensors, count))
            if str(sums_of_all(tensor for _, tensor in mine)) != sums:
                where = mine[0][0] if len(mine) == 1 else f"{mine[0][0]} to {mine[-1][0]}"
                return f"the digest of {where} is not the one that was published"
        return ""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and views, in the order in which they lie."""
        from safetensors.torch import _TYPES

        header = self._header()
        header.pop("__metadata__", None)
        for name, facts in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
            begin, end = (self._start + offset for offset in facts["data_offsets"])
            yield name, self.data[begin:end].view(_TYPES[facts["dtype"]]).view(facts["shape"])

    @property
    def metadata(self) -> dict[str, str]:
        return self._header().get("__metadata__", {})

    def sums(self, unit: Unit) -> Sums:
        """Of all tensors."""
        return sums_of_all((tensor for _, tensor in self.tensors()), unit)

    def _header(self) -> dict[str, Any]:
        return json.loads(self.data[LENGTH_BYTES : self._start].cpu().numpy().tobytes())
