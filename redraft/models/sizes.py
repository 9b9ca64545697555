"""How large a model is, from its config alone: parameters, what a forward pass keeps for the backward pass, the cache.

The model is built without numbers (torch's meta device), and its own code runs on it, so that what is counted is what
any family really keeps, and not a formula for one. Only attention is a stand-in: it keeps what a fused kernel does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.engines.kv_cache import cached_of, only_attends
from learner.lora_config import LoraSettings
from protocols.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

KERNEL = "redraft_sizes"


@dataclass(frozen=True, slots=True)
class Rows:
    """A forward pass of the learner: `count` rows of `length` tokens; `masked` ones hold several sequences that a dense
    mask keeps apart."""

    count: int
    length: int
    attention: str = KERNEL
    masked: bool = False


@dataclass(slots=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass."""

    all: int = 0
    """With nothing computed again."""
    inputs: int = 0
    """Of the layers: what gradient checkpointing keeps of them."""
    layer: int = 0
    """Most within one layer: what checkpointing keeps of that layer while it goes back through it."""
    outside: int = 0
    """Beyond the layers."""
    layers: int = 0

    @property
    def checkpointed(self) -> int:
        """With layers that are computed again in the backward pass."""
        return self.outside + self.inputs + self.layer


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one model. Numbers are elements but where they say bytes."""

    type: str
    parameters: int
    trained: int
    """All of them, or the adapter's."""
    vocabulary: int
    hidden: int
    inner: int
    """Width within a layer's feed-forward part."""
    cached: int
    """Of a token in the engine's cache."""
    cache_heads: int
    """Over which tensor parallelism can spread the cache."""
    only_attends: bool = True
    """The cache holds nothing else."""
    adapter_kept: int = 0
    """Outputs of the adapter's first matrices, of a token."""
    kept: Kept | None = field(default=None)
    """None where the family's code does not run without numbers."""


def config_at(place: str | Path) -> Any:
    """transformers' config of a config.json, a folder that has one, or a model of the hub. Raises SettingError."""
    from transformers import AutoConfig

    path = Path(place).expanduser()
    if path.is_file():
        path = path.parent if path.name == "config.json" else path
    try:
        return AutoConfig.from_pretrained(str(path) if path.exists() else str(place), trust_remote_code=False)
    except Exception as error:  # of an unknown type, broken, or not to be had: every kind raises its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError("model.path", f"no config of {place}: {said}", "Give one with --config FILE") from error


def sizes(config: Any, dtype: str, rows: Rows, lora: LoraSettings | None) -> Sizes:
    """What the model of a config takes, in numbers of `dtype`. Raises SettingError where it is no causal language
    model, or cannot have the adapter."""
    from learner.model.head import linear_of

    model = _empty(config, dtype, rows.attention)
    text = config.get_text_config()
    vocabulary, hidden = _shape(linear_of(model))
    trained = parameters = sum(part.numel() for part in model.parameters())
    ranks = 0
    if lora is not None:
        from learner.model.lora import targets

        modules = dict(model.named_modules())
        shapes = [_shape(modules[name]) for name in targets(model, lora)]
        trained, ranks = lora.rank * sum(rows + columns for rows, columns in shapes), lora.rank * len(shapes)
    heads, cached = cached_of(text)
    return Sizes(
        type=text.model_type,
        parameters=parameters,
        trained=trained,
        vocabulary=vocabulary,
        hidden=hidden,
        inner=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        cached=cached,
        cache_heads=heads,
        only_attends=only_attends(text),
        adapter_kept=ranks,
        kept=_kept(model, rows),
    )


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Of a linear layer's weight."""
    rows, columns = layer.get_parameter("weight").shape
    return rows, columns


def _empty(config: Any, dtype: str, attention: str) -> PreTrainedModel:
    """The model without numbers, as the learner loads it: of a multimodal folder the text model."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    _register()
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        problem = f"a model of type {config.model_type} is not a causal language model"
        raise SettingError("model.path", problem, "Name another model")
    if kind.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    how = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    try:
        with torch.device("meta"):
            return kind._from_config(config, **how).eval()
    except Exception as error:  # a family's code may stumble over anything
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(
            "model.path", f"no model can be built of its config: {said}", "Name another model"
        ) from error


def _kept(model: PreTrainedModel, rows: Rows) -> Kept | None:
    import torch

    from learner.model.head import body_of

    shape = rows.count, rows.length
    with torch.device("meta"):
        ids = torch.zeros(shape, dtype=torch.long)
        positions = torch.arange(rows.length).expand(shape)
        mask = torch.empty(rows.count, 1, rows.length, rows.length, dtype=model.dtype)
    body = body_of(model)
    model.config._redraft_masked = rows.masked
    own = {part.untyped_storage()._cdata for part in (*model.parameters(), *model.buffers(), mask)}
    for given in (mask, None):  # recurrent families know no mask of this shape
        kept = Kept()
        try:
            with _noted(model, set(own), kept):
                body(input_ids=ids, position_ids=positions, attention_mask=given, use_cache=False)
        except Exception:  # experts that are chosen by numbers, kernels that exist on some devices only
            continue
        return kept
    return None


@contextmanager
def _noted(model: PreTrainedModel, known: set[int], kept: Kept) -> Iterator[None]:
    """Fills `kept` by what is saved inside; `known` storages are not counted."""
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    alive: list[Any] = []  # so that no storage takes the place of another
    before: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            alive.append(storage)
            kept.all += storage.nbytes()
        return tensor

    def enter(_, arguments: tuple, named: dict) -> None:
        hidden = next(part for part in (*arguments, *named.values()) if isinstance(part, torch.Tensor))
        kept.inputs += hidden.numel() * hidden.element_size()
        kept.layers += 1
        before.append(kept.all)

    def leave(*_) -> None:
        inside = kept.all - before.pop()
        kept.layer = max(kept.layer, inside)
        kept.outside -= inside

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        kept.outside += kept.all


def _register() -> None:
    """Makes transformers know an attention that keeps what fused kernels do: queries, keys, values, outputs, a float32
    number a head and token, and the mask as numbers where there is one."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query_BHSD, key_BKSD, value_BKSD, mask_B1SS):
            batch, heads, length, _ = query_BHSD.shape
            out_BSHD = query_BHSD.new_empty(batch, length, heads, value_BKSD.shape[-1])
            sums_BHS = query_BHSD.new_empty(batch, heads, length, dtype=torch.float32)
            masks = () if mask_B1SS is None else (mask_B1SS,)
            ctx.save_for_backward(query_BHSD, key_BKSD, value_BKSD, out_BSHD, sums_BHS, *masks)
            return out_BSHD

    def attend(module, query_BHSD, key_BKSD, value_BKSD, mask_B1SS, **_):
        masked = getattr(module.config, "_redraft_masked", False)
        mask_B1SS = torch.empty_like(mask_B1SS, dtype=query_BHSD.dtype) if masked else None
        return Fused.apply(query_BHSD, key_BKSD, value_BKSD, mask_B1SS), None

    AttentionInterface.register(KERNEL, attend)
    AttentionMaskInterface.register(KERNEL, lambda *_, **__: None)
