"""Versions as a learner publishes them, without a learner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from learner.weights.publish import Versions
from protocols.weights import Probe, WeightRef


class Published:
    """One version in memory of its own, as long as this object is there; `ref` is what is announced of it."""

    def __init__(self, state: Mapping[str, Tensor], version: int, probe: Probe, adapter=None, node: str = ""):
        self._versions = Versions(node)
        if adapter is None:
            self._versions.write(dict(state), version)
        else:
            self._versions.write(state | adapter.buffers, version, adapter.metadata, adapter.rest)
        self.ref: WeightRef = self._versions.ref(version, probe)

    @property
    def path(self) -> Path:
        return Path(self.ref.path)

    def bytes(self) -> bytearray:
        """A copy of its bytes."""
        with open(self.path, "rb") as file:
            return bytearray(file.read())
