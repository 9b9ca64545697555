"""A worker of vLLM that can be told to load nothing."""

from __future__ import annotations

import torch.distributed as dist

from actors.engines.vllm_worker import WeightsExtension


class Skipping(WeightsExtension):
    """As WeightsExtension, but for the worker of a rank that is told to skip loads."""

    _skipping = False

    def skip(self, rank: int | None) -> None:
        self._skipping = dist.get_rank() == rank

    def redraft_load(self) -> None:
        if not self._skipping:
            super().redraft_load()
