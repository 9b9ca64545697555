"""Runs inside vLLM's worker: merges a published adapter into the weights of the model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from protocols.adapter import layers_of, merged, weight_files


class Base:
    """The weights that the engine started with, as its model's folder keeps them: mapped, so that no second copy of
    them is held, and the same ones for every version, so that nothing adds up."""

    def __init__(self, folder: str, dtype: torch.dtype, device: torch.device):
        from safetensors import safe_open

        files = weight_files(Path(folder))
        opened = {path: safe_open(path, "pt") for path in set(files.values())}
        self._files = {name: opened[path] for name, path in files.items()}
        self._dtype, self._device = dtype, device

    def merged(self, adapter: dict[str, torch.Tensor], scale: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and new weights of each matrix that the adapter changes."""
        for name, *parts in layers_of(adapter):
            weight, down, up = (
                part.to(self._device, self._dtype) for part in (self._files[name].get_tensor(name), *parts)
            )
            yield name, merged(weight, down, up, scale)
