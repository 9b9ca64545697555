"""A low-rank adapter: how its file is laid out, and the one formula by which learner and engines merge it.

The file is PEFT's adapter_model.safetensors: `base_model.model.NAME.lora_A.weight` [rank, in] and `...lora_B.weight`
[out, rank] for each adapted matrix `NAME.weight` [out, in]. Where it is published, the file's own metadata says by what
B A is scaled, so that nobody has to be told beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
SCALE = "lora_scale"
STEPS = 1 << 16  # what the bits that float32 has more than bfloat16 can be
ROW, COLUMN = 49471, 37345  # STEPS over the plastic number and over its square: a sequence that fills a plane evenly


def metadata(scale: float) -> dict[str, str]:
    """Of the file of an adapter that is published."""
    return {"format": "pt", SCALE: repr(scale)}


def scale_of(found: Mapping[str, str] | None) -> float | None:
    """By what B A is scaled, or None where the file holds no adapter."""
    return float(found[SCALE]) if found and SCALE in found else None


def merged(weight, down, up, scale: float):
    """W + scale * B A in W's dtype, of torch's tensors W [out, in], A [rank, in] and B [out, rank], on W's device.

    Rounding to bfloat16 is dithered: up with the probability of the part that is cut, by a fixed pattern over the
    matrix. To the nearest, W (which bfloat16 holds exactly) would swallow every change below half its last digit, and
    that is most of an adapter: of a change that moves log-probs by .23 in float32 nothing was left, and of one that
    moves them by 1.5 two thirds. Where B A is 0 the result is W.
    """
    exact = weight.float().addmm(up.float() * scale, down.float())
    if weight.element_size() == 4:
        return exact
    rows, columns = (
        exact.new_tensor(np.arange(count) * step % STEPS).int()
        for count, step in zip(exact.shape, (ROW, COLUMN), strict=True)
    )
    bits = exact.view(rows.dtype)
    bits += (rows[:, None] + columns).bitwise_and_(STEPS - 1)
    bits &= -STEPS
    return bits.view(exact.dtype).to(weight.dtype)


def adapted_name(weight: str, part: str) -> str:
    """The name in an adapter's file of the `part`, DOWN or UP, of what changes a weight."""
    return f"{PREFIX}{weight.removesuffix('.weight')}{part}"


def layers_of(adapter: Mapping) -> Iterator[tuple]:
    """Name of the weight, A and B, for each matrix that an adapter changes."""
    for name in adapter:
        if name.endswith(DOWN):
            weight = name.removeprefix(PREFIX).removesuffix(DOWN) + ".weight"
            yield weight, adapter[name], adapter[adapted_name(weight, UP)]


def weight_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of each tensor in the folder of a model, by the tensor's name there."""
    return {name: path for path in sorted(Path(folder).glob("*.safetensors")) for name in _names(path)}


def _names(path: Path) -> list[str]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return [name for name in json.loads(file.read(size)) if name != "__metadata__"]
