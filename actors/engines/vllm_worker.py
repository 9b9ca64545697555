"""Runs inside vLLM's worker: replaces the weights in place, and reads them back."""

from __future__ import annotations

import mmap
from collections.abc import Collection

import numpy as np
import torch

from protocols.checksum import element_checksum

if not torch.cuda.is_available():
    from vllm.model_executor.layers import utils
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    # Without AMX its kernels take blocks of 16 tokens as well, which it does not own up to.
    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])

    # CPU attention uses AMX tiles without asking the kernel for them: a worker process dies at its first step.
    torch._C._cpu._init_amx()

    def _keep_parameters_live(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    # vLLM would pack linears and free their parameters. A later load then has to unpack, and leaves a tied head as
    # it was. Live parameters can be copied into, checked, and cost no more at these sizes.
    utils.dispatch_cpu_unquantized_gemm = _keep_parameters_live


class WeightsExtension:
    """Mixed into the worker by `worker_extension_cls`; called through collective_rpc."""

    _loaded: Collection[str] = ()  # names of what the last load wrote

    def redraft_open(self, path: str) -> None:
        """Maps the safetensors file at `path` and touches its pages, so that loading has nothing to do but copy. The
        caller has checked its digest."""
        from safetensors.torch import safe_open

        with safe_open(path, "pt") as file:
            self._opened = {name: file.get_tensor(name) for name in file.keys()}
        for tensor in self._opened.values():
            tensor.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()

    def redraft_load(self) -> None:
        """Copies the file that was opened into the running model."""
        self._loaded = self.model_runner.model.load_weights(self._opened.items()) or ()
        del self._opened

    def redraft_elements(self) -> str:
        """Order-free checksum of the parameters that the model computes with, and of the buffers that were loaded."""
        model = self.model_runner.model
        buffers = (buffer for name, buffer in model.named_buffers() if name in self._loaded)
        return element_checksum(_bits(tensor.detach()) for tensor in (*model.parameters(), *buffers))


def _bits(tensor: torch.Tensor) -> np.ndarray:
    words = {1: torch.uint8, 2: torch.uint16}
    return tensor.cpu().flatten().view(words.get(tensor.element_size(), torch.uint32)).numpy()
