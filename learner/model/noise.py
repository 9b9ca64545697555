"""Noise: how much of a log-prob is rounding, measured on the model's own weights, in the type it runs in.

Monte Carlo arithmetic (Parker, Pierce and Eggert 2000): the same pass again, with what each module returns moved by one
unit in the last place, up or down at random. One such move has the variance of twelve roundings (that of a rounding is
a twelfth of a squared unit), which is more than one module makes one after the other, so that what two sound ways to
compute the same differ by stays below it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Log-probs are float32, so that they cannot agree better than to its last digit; a GPU may multiply float32 as TF32.
LAST_DIGIT = {"cpu": 2.0**-23, "cuda": 2.0**-10}


@contextlib.contextmanager
def rounding(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Within it, every floating-point number that a part of the model returns is off by one unit in the last place."""
    devices = {parameter.device for parameter in model.parameters()}
    random = {device: torch.Generator(device).manual_seed(seed) for device in devices}

    def moved(value):
        if isinstance(value, Tensor) and value.is_floating_point() and value.device in random:
            up = torch.randint(2, value.shape, generator=random[value.device], device=value.device, dtype=torch.int8)
            return value * (1 + torch.finfo(value.dtype).eps * (2 * up - 1)).to(value.dtype)
        if type(value) is tuple:
            return tuple(moved(part) for part in value)
        return value

    hooks = [
        part.register_forward_hook(lambda module, inputs, output: moved(output))
        for part in model.modules()
        if next(part.children(), None) is None or next(part.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
