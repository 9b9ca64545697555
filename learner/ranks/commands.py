"""Commands: rank 0 tells all ranks what to do next, and does it too. Each is a collective, so ranks never disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from protocols.errors import FaultError

Value = TypeVar("Value")
END = "end"


class Commands:
    """`obey(kind, payload)` does what is commanded, on every rank; `group` is a process group on the CPU."""

    def __init__(self, group: dist.ProcessGroup, world: int, obey: Callable[[str, Any], Any]):
        self._group, self._world, self._obey = group, world, obey

    def give(self, kind: str, payload: Any = None, each: Sequence | None = None) -> Any:
        """Rank 0: has every rank do `kind`, with one payload for all or one for each; returns what it got itself."""
        payloads = each if each is not None else [payload] * self._world
        if self._world > 1:
            dist.scatter_object_list([None], [(kind, item) for item in payloads], src=0, group=self._group)
        return self._obey(kind, payloads[0])

    def wait(self) -> None:
        """Rank 0, now and then while it waits for something: so that the others wait for no longer than their group's
        time limit to hear of it."""
        if self._world > 1:
            self.give("wait")

    def end(self, reason: str) -> None:
        """Rank 0: the others return from `follow`."""
        if self._world > 1:
            dist.scatter_object_list([None], [(END, reason)] * self._world, src=0, group=self._group)

    def follow(self) -> str:
        """Ranks 1..: does what rank 0 commands until it says "end"; returns why it did."""
        while True:
            box: list[Any] = [None]
            dist.scatter_object_list(box, None, src=0, group=self._group)
            kind, payload = box[0]
            if kind == END:
                return payload
            self._obey(kind, payload)


def together(write: Callable[[], object]) -> None:
    """Every rank writes what is its own; returns once all have. Where one cannot, all of them raise: that one what it
    met, a full disk say, the others FaultError. A collective."""
    problem = None
    try:
        write()
    except Exception as error:  # of a full disk each library says something else
        problem = error
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    failed = torch.tensor([0 if problem is None else 1 + dist.get_rank()], device=device)
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if problem is not None:
        raise problem
    if number := int(failed):
        rank = f"learner rank {number - 1}"
        raise FaultError(f"{rank} could not write its part of a checkpoint; logs/learner-{number - 1}.log says why")


def same(value: Value, group: dist.ProcessGroup) -> Value:
    """Rank 0's value, on all ranks."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
