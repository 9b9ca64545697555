"""Attention without masks: sequences lie end to end, and the kernel is told where each begins.

    dense mask       [B, 1, S, S] of a packed row, most of which keeps sequences apart
    variable length  int32[n + 1], where the n sequences begin and end; each attends to itself alone, causally

On CUDA this is torch's own kernel for bfloat16; elsewhere a loop over sequences computes the same, by which the path
to the kernel is tested. transformers hands the bounds through a model's forward pass to `attend`, which is registered
with it under the name VARLEN. What a kind of attention needs beside a causal bound and a sliding window (sinks, capped
scores, chunks) raises here, so that nothing is left out in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARLEN = "varlen"
Attention = Literal["auto", "eager", "sdpa", "varlen"]
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Keyword arguments by which a model's layers are told where sequences begin and end, and how long the longest is."""
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""Keyword arguments of layers that say of attention what is not computed here."""
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


def choose(wanted: Attention, device: str, dtype: torch.dtype) -> str:
    """The attention to load a model with. auto: without masks, but where CUDA's kernel does not take the type."""
    if wanted != "auto":
        return wanted
    return VARLEN if device != "cuda" or dtype in KERNEL_DTYPES else "sdpa"


def register() -> None:
    """Makes VARLEN known to transformers, to which a name without a function for masks means that none is made."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, attend)


def used_by(model: PreTrainedModel) -> bool:
    return model.config._attn_implementation == VARLEN


def bounds(positions_BS: Tensor) -> dict[str, Any]:
    """BOUNDS of rows whose positions restart at 0 with each sequence, and with each row."""
    flat = positions_BS.flatten()
    begins = (flat == 0).nonzero().flatten()
    ends = torch.cat([begins[1:], begins.new_tensor([len(flat)])])
    bounds = torch.cat([begins, begins.new_tensor([len(flat)])]).to(torch.int32)
    longest = int((ends - begins).max())
    return dict(zip(BOUNDS, (bounds, bounds, longest, longest), strict=True))


def attend(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The output, [B, S, H, D], as transformers wants it. Without bounds each row is one sequence.

    Raises NotImplementedError for what it does not compute.
    """
    if not torch.compiler.is_compiling():  # which the number of a layer would have done for each one anew
        _refuse(module, query_BHSD, value_BGSD, attention_mask, dropout, sliding_window, others)
    rows, _, width, _ = query_BHSD.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * width + 1, width, dtype=torch.int32, device=query_BHSD.device)
        max_length_q = width
    query_THD, key_TGD, value_TGD = (part.transpose(1, 2).flatten(0, 1) for part in (query_BHSD, key_BGSD, value_BGSD))
    kernel = _by_kernel if query_BHSD.is_cuda else _by_sequence
    output_THD = kernel(query_THD, key_TGD, value_TGD, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return output_THD.unflatten(0, (rows, width)), None


def _by_kernel(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    bounds_n: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query_THD,
        key_TGD,
        value_TGD,
        cu_seq_q=bounds_n,
        cu_seq_k=bounds_n,
        max_q=longest,
        max_k=longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # of the past, and of the future
        enable_gqa=query_THD.shape[1] != key_TGD.shape[1],
    )
    assert isinstance(output, Tensor), "nothing else was asked for"
    return output


def _by_sequence(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    bounds_n: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    lengths = bounds_n.diff().tolist()
    parts = zip(*(part.split(lengths) for part in (query_THD, key_TGD, value_TGD)), strict=True)
    shared = query_THD.shape[1] != key_TGD.shape[1]
    outputs = []
    for query, key, value in parts:
        mask = None
        if window is not None and window < len(query):
            places = torch.arange(len(query), device=query.device)
            back = places[:, None] - places
            mask = (back >= 0) & (back < window)
        heads = (part.transpose(0, 1)[None] for part in (query, key, value))
        found = scaled_dot_product_attention(
            *heads, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
        )
        outputs.append(found[0].transpose(0, 1))
    return torch.cat(outputs)


def _refuse(
    module: nn.Module,
    query: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    window: int | None,
    others: dict[str, Any],
) -> None:
    wrong = [name for name in UNKNOWN if others.get(name) is not None]
    if wrong:
        raise NotImplementedError(f"attention without masks does not know {wrong[0]}")
    if attention_mask is not None or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError("attention without masks is causal, and has no mask and no dropout")
    if query.shape[-1] != value.shape[-1]:
        raise NotImplementedError("attention without masks needs keys and values of one size")
    if (kind := _kind(module)) not in ("full_attention", "sliding_attention"):
        raise NotImplementedError(f"attention without masks does not know layers of {kind}")
    if kind == "sliding_attention" and window is None:
        raise NotImplementedError("a layer does not say how long its sliding window is")


def _kind(module: nn.Module) -> str:
    """The layer's kind of attention, by its config."""
    config = getattr(module, "config", None)
    kinds, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if kinds and isinstance(number, int) and number < len(kinds):
        return kinds[number]
    if getattr(config, "attention_chunk_size", None):
        return "chunked_attention"
    return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
