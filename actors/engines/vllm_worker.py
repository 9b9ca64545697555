"""Runs inside vLLM's worker: replaces the weights in place, and reads them back."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from actors.engines.vllm_adapter import Base
from actors.engines.vllm_common import Share
from actors.engines.vllm_held import Held
from actors.engines.vllm_shares import shares
from actors.laid_out import LaidOut
from protocols.adapter import PREFIX, scale_of
from protocols.broadcast import Seat
from protocols.checksum import Sums, Unit, summed, sums_of

if not torch.cuda.is_available():
    from vllm.model_executor.layers import utils
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.sample import rejection_sampler

    # Without AMX its kernels take blocks of 16 tokens as well, which it does not own up to.
    sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])
    setattr(CPUAttentionBackend, "get_supported_kernel_block_sizes", sizes)  # noqa: B010  types take it for a method

    # CPU attention uses AMX tiles without asking the kernel for them: a worker process dies at its first step.
    torch._C._cpu._init_amx()  # pyright: ignore[reportAttributeAccessIssue]  the stubs lack it

    def _keep_parameters_live(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # pyright: ignore[reportArgumentType]  no module, a function

    # vLLM would pack linears and free their parameters. A later load then has to unpack, and leaves a tied head as
    # it was. Live parameters can be copied into, checked, and cost no more at these sizes.
    utils.dispatch_cpu_unquantized_gemm = _keep_parameters_live

    def _for_each_token(
        x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> torch.Tensor:
        counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
        return torch.where(x == replace_from, replace_to, x).repeat_interleave(counts, output_size=num_tokens)

    # vLLM's own writes into a copy unless x are int64, so that proposed tokens meet temperatures that were never set.
    rejection_sampler.expand_batch_to_tokens = _for_each_token


class WeightsExtension:
    """Mixed into the worker by `worker_extension_cls`; called through collective_rpc."""

    if TYPE_CHECKING:  # the worker's
        model_config: Any
        device: torch.device
        model_runner: Any
        rank: int

    _loaded: Collection[str] = ()  # names of what the last load wrote
    _adapter: tuple[dict[str, torch.Tensor], float] | None = None  # that is merged in, and by what it is scaled

    def redraft_open(self, path: str | None) -> None:
        """Maps the safetensors file at `path` and touches its pages, so that loading has nothing to do but copy; of an
        adapter, merges it into the weights of the model's folder. None: the same with what is held. The caller has
        checked the digest."""
        laid = self._laid() if path is None else LaidOut.at(path)
        tensors, scale = dict(laid.tensors()), scale_of(laid.metadata)
        if scale is not None:
            self._open_adapter(tensors, scale)
            return
        if path is not None:
            laid.data[:: mmap.PAGESIZE].sum()
        self._opened, self._adapter = tensors.items(), None

    def _open_adapter(self, tensors: dict[str, torch.Tensor], scale: float) -> None:
        if not hasattr(self, "_base"):
            self._base = Base(self.model_config.model, self.model_config.dtype, self.device)
        self._adapter = tensors, scale
        others = ((name, tensor) for name, tensor in tensors.items() if not name.startswith(PREFIX))
        self._opened = chain(self._base.merged(*self._adapter), others)
        if self.device.type == "cpu":  # elsewhere matrix by matrix while they are loaded: memory is short there
            self._opened = list(self._opened)

    def redraft_receive(self, seat: dict[str, Any]) -> None:
        """Begins to take part in the broadcast of a version, which is held then: see Held, also for the next two."""
        self._held.receive(Seat(**seat))

    def redraft_received(self) -> str | None:
        return self._held.state()

    def redraft_drop(self) -> None:
        self._held.drop()

    def redraft_wrong(self, size: int, head: str, buckets: list[tuple[int, str]]) -> str:
        """In what the version that is held differs from the one that was published."""
        return self._laid().wrong(size, head, buckets)

    def redraft_elements(self) -> str:
        """Sums of the elements of the version that is held."""
        return str(self._laid().sums("elements"))

    @cached_property
    def _held(self) -> Held:
        return Held(self.device, self.rank)

    def _laid(self) -> LaidOut:
        if self._held.data is None:
            raise RuntimeError("no version is held")
        return LaidOut(self._held.data)

    def redraft_load(self) -> None:
        """Copies what was opened into the running model."""
        self._loaded = self.model_runner.model.load_weights(self._opened) or ()
        del self._opened

    def redraft_sums(self, unit: Unit) -> Share | None:
        """Sums of the parameters that the model computes with and of the buffers that were loaded, and of an adapter's
        matrices as they are merged: see vllm_common.live. None where it is not known who holds what."""
        held: dict[int, Sums] = {}
        for copies, tensor in shares(self.model_runner.model, self._loaded):
            if not copies:
                return None
            held[copies] = held.get(copies, Sums()) + sums_of(tensor, unit)
        merged = () if self._adapter is None else self._base.merged(*self._adapter)
        changed = summed(sums_of(tensor, unit) for _, tensor in merged)
        return {copies: str(sums) for copies, sums in held.items()}, str(changed)
