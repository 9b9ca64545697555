"""Runs inside vLLM's worker: replaces the weights in place, and reads them back."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Collection
from concurrent.futures import Future
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
from protocols.checksum import Unit, sums_of_all

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
    _beside: Future[Any] | None = None  # what runs beside the steps, or did

    def redraft_begin(self, method: str, *arguments: Any) -> None:
        """Begins another method in a thread of its own, so that the worker goes on with its steps, as soon as the one
        before has ended."""
        before, self._beside = self._beside, Future()
        what = before, self._beside, method, arguments
        threading.Thread(target=self._run_beside, args=what, name="weights", daemon=True).start()

    def redraft_ended(self) -> list[Any] | None:
        """What that method has returned, alone in a list; None while it runs. Raises what it raised."""
        return [self._beside.result()] if self._beside is not None and self._beside.done() else None

    def _run_beside(self, before: Future[Any] | None, beside: Future[Any], method: str, arguments: tuple) -> None:
        try:
            if before is not None:
                before.exception()
            if self.device.type == "cpu":
                beside.set_result(getattr(self, method)(*arguments))
                return
            torch.cuda.set_device(self.device)
            torch.cuda.synchronize(self.device)  # what was loaded just now is there
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.stream(stream):  # steps go on in theirs
                result = getattr(self, method)(*arguments)
            stream.synchronize()
            beside.set_result(result)
        except BaseException as error:
            beside.set_exception(error)

    def redraft_map(self, handle: bytes, size: int, stamp: str) -> str:
        """Maps a version that a learner of this node has on a GPU, which is held then: see Held."""
        return self._held.map(handle, size, stamp)

    def redraft_open(self, path: str | None) -> None:
        """Maps the safetensors file at `path` and touches its pages, so that loading has nothing to do but copy; of an
        adapter, merges it into the weights of the model's folder. None: the same with what is held. The caller has
        checked the digest."""
        laid = self._held.laid if path is None else LaidOut.at(path)
        tensors, scale = dict(laid.tensors()), scale_of(laid.metadata)
        if scale is not None:
            own = {name: tensor.clone() for name, tensor in tensors.items()}  # it is asked for again when sums are
            self._open_adapter(own, scale)
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
        return self._held.wrong(size, head, buckets)

    def redraft_elements(self) -> str:
        """Sums of the elements of the version that is held."""
        return str(self._held.laid.sums("elements"))

    @cached_property
    def _held(self) -> Held:
        return Held(self.device, self.rank)

    def redraft_load(self) -> None:
        """Copies what was opened into the running model."""
        self._loaded = self.model_runner.model.load_weights(self._opened) or ()
        del self._opened

    def redraft_sums(self, unit: Unit) -> Share | None:
        """Sums of the parameters that the model computes with and of the buffers that were loaded, and of an adapter's
        matrices as they are merged: see vllm_common.live. None where it is not known who holds what."""
        held: dict[int, list[torch.Tensor]] = {}
        for copies, tensor in shares(self.model_runner.model, self._loaded):
            if not copies:
                return None
            held.setdefault(copies, []).append(tensor)
        merged = () if self._adapter is None else self._base.merged(*self._adapter)
        changed = sums_of_all((tensor for _, tensor in merged), unit)
        return {copies: str(sums_of_all(tensors, unit)) for copies, tensors in held.items()}, str(changed)
