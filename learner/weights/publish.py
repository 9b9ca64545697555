"""Publishing: gathered weights as they lie in shared memory, with what an actor needs to check its copy.

The bytes are those of a safetensors file, written in place: the header tells names, types and shapes, and the version's
stamp. They are copied once, tensor by tensor, and summed where they are: on a CPU while they are in its cache.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import _TYPES
from torch import Tensor

from learner.weights.card import Card
from learner.weights.memory import Buffer, Memory
from protocols.checksum import Sums, Unit, sums_of, sums_of_all, word_sums
from protocols.weights import TRIAL, Bucket, Probe, WeightRef

BUCKET_BYTES = 64 << 20  # summed apart, so that damage is told from where it is
TYPES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(slots=True)
class Held:
    """A version in memory. `blob` is its copy in the object store, once someone has asked for one."""

    buffer: Buffer
    stamp: str
    head: Sums
    buckets: tuple[Bucket, ...]
    rest: Mapping[Unit, Sums] | None
    blob: Any = None


class Versions:
    """What a learner holds for its actors: the trial, and the newest version. `blob` may be called in any thread.

    `node` is Ray's id of the learner's, `source` its handle: see WeightRef. With a `card` all but the trial and the
    first version lie on that GPU, where they can.
    """

    def __init__(self, node: str = "", source: Any = None, card: Card | None = None):
        self._node, self._source, self._run = node, source, uuid.uuid4().hex
        self._card = card
        self._memory, self._held = Memory(), dict[int, Held]()
        self._lock = threading.Lock()

    def write(
        self,
        state: dict[str, Tensor],
        version: int,
        metadata: Mapping[str, str] | None = None,
        rest: Mapping[Unit, Sums] | None = None,
    ) -> dict[str, Tensor]:
        """Copies tensors, wherever they lie, into memory as `version`, which is the newest from now on. Returns them as
        they lie there: they may be read until the next version is written."""
        stamp = f"{self._run}/{version}"
        names, head = _laid_out(state, {"format": "pt", "stamp": stamp, **(metadata or {})})
        buffer = self._room(len(head) + sum(tensor.nbytes for tensor in state.values()), version)
        buffer.begin(head)
        placed, start = {}, len(head)
        for name in names:
            tensor = state[name]
            data = buffer.data[start : start + tensor.nbytes]
            placed[name] = data.view(tensor.dtype).view(tensor.shape)
            start += tensor.nbytes
        buckets = _filled([(placed[name], state[name]) for name in names])
        buffer.release()
        with self._lock:
            for old in [number for number in self._held if version != TRIAL != number]:
                self._memory.give(self._held.pop(old).buffer)
            self._held[version] = Held(buffer, stamp, sums_of(buffer.data[: len(head)]), buckets, rest)
        return placed

    def _room(self, size: int, version: int) -> Buffer:
        """Memory for a version, claimed. One that lies where it is to lie is given up before."""
        with self._lock:
            first = version == TRIAL or self._held.keys() <= {TRIAL}
            if self._card is None or first:
                return self._memory.take(size)
            self._held = {number: held for number, held in self._held.items() if not held.buffer.handle}
        return self._card.take(size) or self._memory.take(size)

    @property
    def newest(self) -> int:
        """The version that was written last; the trial where there is none."""
        with self._lock:
            return max(self._held, default=TRIAL)

    @contextlib.contextmanager
    def reading(self, version: int) -> Iterator[Tensor]:
        """A version's bytes, uint8[size], which stay as they are inside. Raises KeyError where there is a newer one."""
        with contextlib.ExitStack() as stack:
            with self._lock:
                buffer = self._held[version].buffer
                stack.enter_context(buffer.locked())
            yield buffer.data

    def ref(self, version: int, probe: Probe) -> WeightRef:
        """What is announced of a version that was written last, or of the trial."""
        held = self._held[version]
        return WeightRef(
            version=version,
            size_bytes=len(held.buffer),
            head=held.head,
            buckets=held.buckets,
            probe=probe,
            node=self._node,
            path=held.buffer.path,
            handle=held.buffer.handle,
            stamp=held.stamp,
            source=self._source,
            rest=held.rest,
        )

    def blob(self, version: int) -> list:
        """Ray's reference of the version's bytes (uint8[size]) in the object store, put there when first asked for, in
        a list so that Ray passes it on as it is; an empty one where there is a newer version."""
        import ray

        with self._lock:
            held = self._held.get(version)
            if held is None:
                return []
            if held.blob is None:
                held.blob = ray.put(
                    held.buffer.data.cpu().numpy()
                )  # while the lock keeps the buffer from being given back
            return [held.blob]

    def save(self, version: int, path: Path) -> None:
        """Writes a version as a safetensors file."""
        with open(path, "wb") as file:
            file.write(self._held[version].buffer.data.cpu().numpy().data)


def _laid_out(state: dict[str, Tensor], metadata: dict[str, str]) -> tuple[list[str], bytes]:
    """Names in the order in which the tensors lie, larger types first so that each is aligned, and the header."""
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in names:
        tensor = state[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)  # the data begin at a multiple of 64
    return names, len(text).to_bytes(8, "little") + text


def _filled(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Bucket, ...]:
    """Copies each second tensor into the first; what is filled, bucket by bucket."""
    buckets, bucket, size = [], list[tuple[Tensor, Tensor]](), 0
    for place, tensor in pairs:
        bucket.append((place, tensor.detach()))
        size += tensor.nbytes
        if size >= BUCKET_BYTES:
            buckets.append(Bucket(len(bucket), _copied(bucket)))
            bucket, size = [], 0
    return (*buckets, Bucket(len(bucket), _copied(bucket))) if bucket else tuple(buckets)


def _copied(bucket: list[tuple[Tensor, Tensor]]) -> Sums:
    """Copies the tensors of a bucket and returns their sums: from one CPU's memory to the other in one pass, else of
    what has come to a GPU, or comes from one."""
    found, there = Sums(), []
    for place, tensor in bucket:
        if place.device.type == tensor.device.type == "cpu":
            source, target = (each.contiguous().view(-1).view(torch.uint8).numpy() for each in (tensor, place))
            found += word_sums(source, target)
        else:
            place.copy_(tensor)
            there.append(tensor if place.device.type == "cpu" else place)
    return found + sums_of_all(there)


def probe_tokens(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """The run's fixed sequence, whose log-probs tell whether an engine computes with the weights it was given."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
