"""What training goes on from, in a file of each rank: its part of the float32 weights and of AdamW's moments, by
parameter. So it can be gone on with by other ranks, and under another stage: each takes what it is to have.

DeepSpeed lays the parameters of a rank into flat tensors, in another way for each of its optimizers; its own files hold
these as they are, and fit no other layout. Here every stretch of a parameter is named:

    engine/rank-0.pt    flats      [{weights, exp_avg, exp_avg_sq: float32[n]; step}], moments once there was a step
                        pieces     [(parameter, first element in it, elements, flat, first element there)]
                        buffers    {name: tensor} that belong to the weights, of rank 0

Where ranks hold the same, rank 0 alone writes it. Files are mapped when they are read: a rank takes from each no more
than its own part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.model.saved import saved_buffers
from learner.ranks.commands import together
from protocols.errors import RedraftError

if TYPE_CHECKING:
    from learner.ranks.training import Training

MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """So many elements of a parameter, from `start` on, which lie in a flat tensor from `at` on."""

    name: str
    start: int
    numel: int
    flat: int
    at: int


@dataclass(frozen=True, slots=True)
class Layout:
    """This rank's flat tensors, float32, and what of which parameter lies in them; `shared` where all have the same."""

    flats: list[Tensor]
    pieces: list[Piece]
    shared: bool = False


def laid_out(training: Training) -> Layout:
    """Where this rank's part of the trained weights and moments lies."""
    optimizer: Any = training.engine.optimizer
    names: dict[Any, str] = {parameter: name for name, parameter in _trained(training.policy).items()}
    if training.stage == 3:
        return _by_partition(optimizer, names)
    for flats, groups in (
        ("single_partition_of_fp32_groups", "bit16_groups"),
        ("fp32_groups_flat_partition", "bf16_groups"),
    ):
        if hasattr(optimizer, flats):
            return _by_mapping(getattr(optimizer, flats), getattr(optimizer, groups), names)
    if hasattr(optimizer, "fp32_groups"):
        kept = zip(_chained(optimizer.fp16_groups), _chained(optimizer.fp32_groups), strict=True)
    else:
        kept = ((parameter, parameter) for parameter in names)
    pairs = [(names[parameter], whole) for parameter, whole in kept]
    pieces = [Piece(name, 0, whole.numel(), flat, 0) for flat, (name, whole) in enumerate(pairs)]
    return Layout([whole for _, whole in pairs], pieces, shared=True)


def save(training: Training, folder: Path) -> None:
    """Writes this rank's file into a folder that all ranks share; see `together`."""
    layout, rank = laid_out(training), dist.get_rank()
    together(lambda: None if layout.shared and rank else _write(training, layout, folder, rank))


def _write(training: Training, layout: Layout, folder: Path, rank: int) -> None:
    flats = []
    for flat in layout.flats:
        state = training.optimizer.state.get(flat, {})
        kept = {"weights": flat.detach(), **{key: state[key] for key in MOMENTS if key in state}}
        flats.append({key: _apart(tensor) for key, tensor in kept.items()} | {"step": float(state.get("step", 0))})
    folder.mkdir(exist_ok=True)
    buffers = {} if rank else {name: _apart(tensor) for name, tensor in saved_buffers(training.policy).items()}
    content = {"flats": flats, "pieces": [tuple(piece) for piece in layout.pieces], "buffers": buffers}
    torch.save(content, folder / f"rank-{rank}.pt")


@torch.no_grad()
def load(training: Training, folder: Path) -> None:
    """Goes on from what ranks have written into a folder, however many they were, and under whichever stage. Raises
    RedraftError where that lacks a parameter. A collective."""
    source, layout = Source(folder), laid_out(training)
    state = training.optimizer.state
    for number, flat in enumerate(layout.flats):
        if source.step:
            moments = {key: torch.zeros_like(flat, dtype=torch.float32) for key in MOMENTS}
            state[flat] = {"step": torch.tensor(source.step, dtype=torch.float32, device=flat.device), **moments}
        for piece in (piece for piece in layout.pieces if piece.flat == number):
            for start, found in source.read(piece.name, piece.start, piece.numel):
                at = piece.at + start - piece.start
                _fill(flat, at, found["weights"])
                for key in MOMENTS if source.step else ():
                    _fill(state[flat][key], at, found[key])
    training.engine.global_steps = int(source.step)
    for name, parameter in _trained(training.policy).items():
        _load_whole(source, name, parameter, training.stage)
    for name, buffer in saved_buffers(training.policy).items():
        if name in source.buffers:
            buffer.copy_(source.buffers[name])


class Source:
    """The files of all ranks of a checkpoint."""

    def __init__(self, folder: Path):
        files = sorted(folder.glob("rank-*.pt"), key=lambda file: int(file.stem.removeprefix("rank-")))
        if not files:
            raise RedraftError(
                f"{folder} holds no rank's part. Remove {folder.parent}, to resume from the one before it"
            )
        parts = [torch.load(file, mmap=True, weights_only=True) for file in files]
        self.buffers: dict[str, Tensor] = parts[0]["buffers"]
        self.step = float(max((flat["step"] for part in parts for flat in part["flats"]), default=0.0))
        self._found: dict[str, list[tuple[Piece, dict[str, Any]]]] = {}
        for part in parts:
            for piece in map(Piece._make, part["pieces"]):
                self._found.setdefault(piece.name, []).append((piece, part["flats"][piece.flat]))

    @property
    def names(self) -> list[str]:
        """Of all parameters."""
        return sorted(self._found)

    def size(self, name: str) -> int:
        """Elements of a parameter."""
        return max(piece.start + piece.numel for piece, _ in self._found[name])

    def read(self, name: str, start: int, numel: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """These elements of a parameter, in stretches: the first one's place in it, and the values. Raises RedraftError
        where some are in no file."""
        left = numel
        for piece, flat in self._found.get(name, ()):
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                left -= high - low
                at = piece.at + low - piece.start
                yield (
                    low,
                    {key: flat[key].reshape(-1)[at : at + high - low] for key in ("weights", *MOMENTS) if key in flat},
                )
        if left:
            raise RedraftError(f"the checkpoint lacks {left} of {numel} elements of {name}: it is of another model")


def _load_whole(source: Source, name: str, parameter: nn.Parameter, stage: int) -> None:
    """The weights with which the model computes. Stage 3 puts them together for a moment, and deals them out again."""
    if stage < 3:
        _fill_whole(source, name, parameter)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if not dist.get_rank():
            _fill_whole(source, name, parameter)


def _fill_whole(source: Source, name: str, parameter: nn.Parameter) -> None:
    for start, found in source.read(name, 0, parameter.numel()):
        _fill(parameter.data, start, found["weights"])


def _fill(target: Tensor, at: int, values: Tensor) -> None:
    target.view(-1)[at : at + len(values)].copy_(values)


def _trained(policy: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def _by_mapping(flats: Sequence[Tensor], groups: Sequence[Sequence[nn.Parameter]], names: dict) -> Layout:
    """Stages 1 and 2: the parameters of a group one after the other, cut into as many parts as there are ranks."""
    pieces = []
    for flat, group in enumerate(groups):
        for parameter in group:
            mapped: Any = getattr(parameter, "_hp_mapping", None)
            if mapped is not None:
                of_parameter, of_flat = mapped.lp_fragment_address, mapped.hp_fragment_address
                pieces.append(Piece(names[parameter], of_parameter.start, of_parameter.numel, flat, of_flat.start))
    return Layout(list(flats), pieces)


def _by_partition(optimizer: Any, names: dict) -> Layout:
    """Stage 3: each parameter cut into as many parts as there are ranks, the last ones filled up."""
    pieces, rank = [], dist.get_rank()
    for flat, group in enumerate(optimizer.fp16_groups):
        at = 0
        for parameter in group:
            size = parameter.ds_tensor.ds_numel
            start = min(rank * size, parameter.ds_numel)
            if numel := min(size, parameter.ds_numel - start):
                pieces.append(Piece(names[parameter], start, numel, flat, at))
            at += size
    return Layout(list(optimizer.fp32_partitioned_groups_flat), pieces)


def _apart(tensor: Tensor) -> Tensor:
    """Not a view of a larger tensor, all of which would be written."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _chained(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [tensor for group in groups for tensor in group]
