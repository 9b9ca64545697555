"""Publishing: gathered weights as one blob in the object store, with what an actor needs to check its copy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from learner.logprobs import Policy, load_model
from protocols.checksum import element_checksum
from protocols.weights import Probe, WeightRef

STRENGTH = 1.0  # of the perturbation of a trial


def publish(state: dict[str, Tensor], version: int, probe: Probe) -> WeightRef:
    """Puts the weights into Ray's object store as safetensors bytes (uint8[size]) and returns their reference."""
    import ray
    from blake3 import blake3
    from safetensors.torch import save

    blob = save(state)
    return WeightRef(
        version=version,
        digest=blake3(blob).hexdigest(),
        size_bytes=len(blob),
        blob=ray.put(np.frombuffer(blob, np.uint8)),
        probe=probe,
        elements=element_checksum(bits_of(state.values())),
    )


def perturbed(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The weights with every element scaled by a random factor of mean 1 and deviation STRENGTH."""
    random = torch.Generator().manual_seed(seed)

    def scaled(tensor: Tensor) -> Tensor:
        factor = 1 + STRENGTH * torch.randn(tensor.shape, generator=random)
        return (tensor.float() * factor).to(tensor.dtype) if tensor.is_floating_point() else tensor

    return {name: scaled(tensor) for name, tensor in state.items()}


@torch.no_grad()
def scored_by(state: dict[str, Tensor], model_path: str, attention: str, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """Log-probs of tokens 1.. at temperature 1 by a fresh model with these weights, on the CPU."""
    dtype = max(state.values(), key=Tensor.numel).dtype  # a buffer may be of another
    model = load_model(model_path, dtype, "eager" if attention == "flash_attention_2" else attention, state)
    row = torch.tensor([tokens])
    places = torch.arange(len(tokens))
    logprobs, _ = Policy(model.eval())(row, places[None], places[:-1], row[0, 1:])
    return tuple(logprobs.tolist())


def bits_of(tensors: Iterable[Tensor]) -> Iterable[np.ndarray]:
    """The tensors' bits as numpy arrays, which know no bfloat16; elements of 8 bytes as two of 4."""
    words = {1: torch.uint8, 2: torch.uint16}
    for tensor in tensors:
        yield tensor.flatten().view(words.get(tensor.element_size(), torch.uint32)).numpy()


def probe_tokens(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """The run's fixed sequence, whose log-probs tell whether an engine computes with the weights it was given."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
