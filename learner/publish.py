"""Publishing: gathered weights as one blob in the object store, with what an actor needs to check its copy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from protocols.checksum import element_checksum
from protocols.weights import Probe, WeightRef

if TYPE_CHECKING:
    from learner.lora import Adapter


def publish(state: dict[str, Tensor], version: int, probe: Probe, adapter: Adapter | None = None) -> WeightRef:
    """Puts the weights, or those of the adapter, into Ray's object store as safetensors bytes (uint8[size]) and returns
    their reference."""
    import ray
    from blake3 import blake3
    from safetensors.torch import save

    blob = save(state) if adapter is None else save(state | adapter.buffers, adapter.metadata)
    return WeightRef(
        version=version,
        digest=blake3(blob).hexdigest(),
        size_bytes=len(blob),
        blob=ray.put(np.frombuffer(blob, np.uint8)),
        probe=probe,
        elements=element_checksum(bits_of(state.values())) if adapter is None else adapter.rest,
    )


def bits_of(tensors: Iterable[Tensor]) -> Iterable[np.ndarray]:
    """The tensors' bits as numpy arrays, which know no bfloat16; elements of 8 bytes as two of 4."""
    words = {1: torch.uint8, 2: torch.uint16}
    for tensor in tensors:
        yield tensor.flatten().view(words.get(tensor.element_size(), torch.uint32)).numpy()


def probe_tokens(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """The run's fixed sequence, whose log-probs tell whether an engine computes with the weights it was given."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
