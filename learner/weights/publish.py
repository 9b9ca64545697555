"""Publishing: gathered weights as one blob in the object store, with what an actor needs to check its copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import save
from torch import Tensor

from learner.model.saved import bits_of
from protocols.checksum import element_checksum
from protocols.weights import Probe, WeightRef

if TYPE_CHECKING:
    from learner.model.lora import Adapter


def publish(state: dict[str, Tensor], version: int, probe: Probe, adapter: Adapter | None = None) -> WeightRef:
    """Puts the weights, or those of the adapter, into Ray's object store as safetensors bytes (uint8[size]) and returns
    their reference."""
    import ray
    from blake3 import blake3

    blob = save(state) if adapter is None else save(state | adapter.buffers, adapter.metadata)
    return WeightRef(
        version=version,
        digest=blake3(blob).hexdigest(),
        size_bytes=len(blob),
        blob=ray.put(np.frombuffer(blob, np.uint8)),
        probe=probe,
        elements=element_checksum(bits_of(state.values())) if adapter is None else adapter.rest,
    )


def probe_tokens(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """The run's fixed sequence, whose log-probs tell whether an engine computes with the weights it was given."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
