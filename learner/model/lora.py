"""LoRA: a low-rank adapter is trained, published and saved; the model beneath it stays as it is.

PEFT puts the adapter into the model's linear layers, and its files are PEFT's. Only how an adapted layer adds up is
ours: see `Adapted`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from learner.lora_config import LoraSettings
from learner.model.head import linear_of
from learner.model.load import load_model
from learner.model.saved import as_saved, saved_buffers
from protocols.adapter import PREFIX, UP, adapted_name, layers_of, merged, metadata, weight_files
from protocols.checksum import Sums, Unit, summed, sums_of
from protocols.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"  # PEFT's, of the one adapter
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Summed(torch.autograd.Function):
    """delta + x W', added up before it is rounded; W is frozen.

    It keeps the parameter, not its numbers of the forward pass: ZeRO 3 takes those away in between.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_HD: Tensor, delta_NH: Tensor) -> Tensor:
        ctx.weight = weight_HD
        return torch.addmm(delta_NH, x_ND, weight_HD.T)

    @staticmethod
    def backward(ctx, gradient_NH: Tensor) -> tuple[Tensor, None, Tensor]:
        return gradient_NH @ ctx.weight, None, gradient_NH


class Summing(nn.Linear):
    """A linear layer with frozen weights that takes what is to be added to its output."""

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        if delta is None:
            return super().forward(x)
        out = Summed.apply(x.flatten(0, -2), self.weight, delta.flatten(0, -2)).view(delta.shape)
        return out if self.bias is None else out + self.bias


class Adapted(Linear):
    """PEFT's adapted layer, but for one thing: W x + scale * B A x is rounded once.

    PEFT adds the adapter's part to an output that was rounded to bfloat16 before, which swallows what is smaller than
    its last digit: of a change that moves log-probs by 1.5 in float32, a third was lost, of one of .23 all. Engines
    compute with merged weights that keep it (protocols.adapter), so trainer and sampler would disagree.
    """

    def __init__(self, base: nn.Linear, *arguments, **named):
        base.__class__ = Summing
        super().__init__(base, *arguments, **named)

    def forward(self, x: Tensor, *_, **__) -> Tensor:
        if self.disable_adapters:
            return self.base_layer(x)
        return self.base_layer(x, self.lora_B[NAME](self.lora_A[NAME](x)) * self.scaling[NAME])


class Adapter:
    """The adapter of one rank's model, and what others have to know of it."""

    def __init__(self, settings: LoraSettings, model_path: str, seed: int):
        """`seed` of the first values: every fresh adapter of a run is the same, on all ranks."""
        self._settings, self._path, self._seed = settings, model_path, seed
        self.metadata = metadata(settings.scale)
        self.rest: dict[Unit, Sums] = {}  # of all weights that it leaves alone, and of these buffers
        self.buffers: dict[str, Tensor] = {}  # that belong to the weights: published with each version
        self._sizes: dict[str, float] = {}  # root mean square of each matrix that it changes

    def add(self, model: PreTrainedModel) -> None:
        """Puts a fresh adapter into the model, in place, and freezes all else. Raises SettingError."""
        chosen = targets(model, self._settings)
        if not self._sizes:
            self._note(model, {f"{name}.weight" for name in chosen})
        self._config = LoraConfig(
            r=self._settings.rank,
            lora_alpha=self._settings.scale * self._settings.rank,  # pyright: ignore[reportArgumentType]  PEFT takes floats
            target_modules=chosen,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._path,
        )
        self._config._register_custom_module({nn.Linear: Adapted})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            inject_adapter_in_model(self._config, model)

    def _note(self, model: nn.Module, adapted: set[str]) -> None:
        """What is asked later of weights that by then may be sharded."""
        weights = {name: part.detach() for name, part in model.named_parameters()}
        self.buffers = {name: buffer.clone() for name, buffer in saved_buffers(model).items()}
        left = [part for name, part in weights.items() if name not in adapted] + list(self.buffers.values())
        self.rest = {unit: summed(sums_of(part, unit) for part in left) for unit in get_args(Unit)}
        self._sizes = {name: float(weights[name].float().square().mean().sqrt()) for name in adapted}

    @staticmethod
    def trained(model: nn.Module) -> dict[str, nn.Parameter]:
        """The adapter's parameters by the names of PEFT's files."""
        named = model.named_parameters()
        return {PREFIX + name.replace(f".{NAME}", ""): part for name, part in named if part.requires_grad}

    @staticmethod
    @contextlib.contextmanager
    def disabled(model: nn.Module) -> Iterator[None]:
        """Inside, the model computes as it did before there was an adapter."""
        layers = [module for module in model.modules() if isinstance(module, Adapted)]
        for layer in layers:
            layer._disable_adapters = True  # PEFT's own switch also turns gradients off, which DeepSpeed has hooks on
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def perturbed(self, state: dict[str, Tensor], strength: float, seed: int) -> dict[str, Tensor]:
        """The adapter with each B drawn anew, such that B A is `strength` times as large as the matrix that it changes.

        A fresh adapter's B is 0: nothing that scales it would tell whether an engine applies it.
        """
        random = torch.Generator().manual_seed(seed)
        drawn = dict(state)
        for name, down, up in layers_of(state):
            size = self._settings.scale * float(down.float().square().mean().mul(len(down)).sqrt())
            noise = torch.randn(up.shape, generator=random) * (strength * self._sizes[name] / size)
            drawn[adapted_name(name, UP)] = noise.to(up.dtype)
        return drawn

    def merged(self, state: dict[str, Tensor], dtype: torch.dtype, attention: str = "eager") -> PreTrainedModel:
        """A model with this state of the adapter merged into its weights, on the CPU."""
        return _merged(self._path, state, self._settings.scale, dtype, attention)

    def write(self, folder: Path, state: dict[str, Tensor]) -> None:
        """A folder of PEFT with these tensors."""
        from safetensors.torch import save_file

        folder.mkdir()
        self._config.inference_mode = True
        self._config.save_pretrained(str(folder))
        save_file(state, folder / WEIGHTS, metadata=self.metadata)
        (folder / WEIGHTS).chmod(0o644)  # safetensors keeps others out


def targets(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Names of the layers to adapt. Raises SettingError where there are none, or where the rank is too large."""
    head = linear_of(model)
    known = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head}
    names = sorted({_last(name) for name in known})
    if not names:
        problem = f"{type(model).__name__} has no linear layers that an adapter could be put on"
        raise SettingError("model.lora", problem, "Leave it out, to train all weights")
    wanted = names if settings.targets == "auto" else settings.targets
    if unknown := sorted(set(wanted) - set(names)):
        raise SettingError("model.lora.targets", f"the model has no linear layer {', '.join(unknown)}", _known(names))
    chosen = [name for name in known if _last(name) in wanted]
    smallest = min(chosen, key=lambda name: min(known[name].weight.shape))
    if settings.rank > (most := min(known[smallest].weight.shape)):
        problem = f"{settings.rank} is more than {smallest} has rows or columns ({most})"
        raise SettingError("model.lora.rank", problem, f"Set at most {most}, or leave that layer out of the targets")
    return chosen


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _known(names: Iterable[str]) -> str:
    return f"Choose from {', '.join(names)}, or auto for all of them"


def check(folder: str | Path, settings: LoraSettings) -> int:
    """How many parameters would be trained on the model in a folder. Raises SettingError where that cannot be.

    Nothing of the weights is read but their names.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        problem = "its weights are quantised, and an adapter is merged into plain ones"
        raise SettingError("model.path", problem, "Name the model that it was made of, or leave model.lora out")
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
        chosen = targets(model, settings)
    files = weight_files(Path(folder))
    if missing := [name for name in chosen if f"{name}.weight" not in files]:
        problem = f"{folder} stores no {missing[0]}.weight, from which engines merge the adapter"
        raise SettingError("model.lora", problem, "Save the model with `save_pretrained`, as safetensors")
    modules = dict(model.named_modules())
    return sum(settings.rank * sum(modules[name].weight.shape) for name in chosen)


@torch.no_grad()
def _merged(base: str, state: dict[str, Tensor], scale: float, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    model = load_model(base, dtype, attention)
    weights = dict(model.named_parameters())
    for name, down, up in layers_of(state):
        weights[name].data = merged(weights[name].data, down.to(dtype), up.to(dtype), scale)
    return model


def merged_state(base: str | Path, adapter: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What the folder of the model in `base` holds once PEFT's folder `adapter` is merged in, by the names in it, on
    the CPU. In `dtype`, or in that of the run which made the adapter: its own."""
    from safetensors.torch import load_file

    settings = json.loads((Path(adapter) / CONFIG).read_text())
    state = load_file(Path(adapter) / WEIGHTS)
    dtype = dtype or next(iter(state.values())).dtype
    model = _merged(str(base), state, settings["lora_alpha"] / settings["r"], dtype, "eager")
    weights = {name: part.detach() for name, part in model.named_parameters()}
    return as_saved(model, weights | saved_buffers(model))
