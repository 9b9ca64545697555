"""Whether the weights of a model folder are whole, by their headers: a copy that was cut off is told before anything
starts, and by name."""

from __future__ import annotations

import json
from pathlib import Path

from protocols.errors import SettingError

INDEX = "model.safetensors.index.json"
CURE = "Fetch or copy it again"
MOST = 100_000_000  # bytes of a header: safetensors takes no larger one


def check(model: Path) -> None:
    """Raises SettingError where there are none, or naming the first file that is missing or cut off, and a tensor that
    it lacks."""
    files = {file.name: None for file in sorted(model.glob("*.safetensors"))} | _listed(model)
    if not files:
        cure = "Name a model that has them, or load it with transformers and save it with `save_pretrained`"
        raise SettingError("model.path", f"{model} holds no weights as *.safetensors", cure)
    for name, tensor in files.items():
        if not (model / name).exists():
            raise SettingError("model.path", f"{model / name} is missing, which has {tensor}", CURE)
        _check_file(model / name)


def _listed(model: Path) -> dict[str, str | None]:
    """The files of an index, each with one of its tensors."""
    if not (model / INDEX).exists():
        return {}
    try:
        placed = json.loads((model / INDEX).read_text())["weight_map"]
        return {file: tensor for tensor, file in placed.items()}
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise SettingError("model.path", f"{model / INDEX} cannot be read: {error!r}", CURE) from None


def _check_file(file: Path) -> None:
    """A safetensors file: 8 bytes say how long the JSON header is, which says where each tensor ends after it."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= min(size, MOST) else b""
    try:
        tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
        ends = {key: 8 + length + value["data_offsets"][1] for key, value in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise SettingError("model.path", f"{file} is cut off within its header, or damaged", CURE) from None
    whole = max(ends.values(), default=8 + length)
    if size < whole:
        lacking = min((key for key in ends if ends[key] > size), key=ends.__getitem__)
        problem = f"{file} is cut off: {size:,} of {whole:,} bytes are there, and {lacking} is not whole"
        raise SettingError("model.path", problem, CURE)
