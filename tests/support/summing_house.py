"""A rank for tests: it steps a trainer of each kind on many micro-batches, and tells the gradient that was taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from learner.batches.batch import prepare
from learner.batches.packing import MicroBatch
from learner.config import LearnerSettings
from learner.objectives import report
from learner.ranks.commands import Commands, together
from learner.ranks.rank import Rank
from learner.ranks.trainer import Trainer, join_ranks
from protocols.turns import Group

WIDTH, VOCABULARY = 16, 8  # the model knows more tokens: all sequences pull away from those alike


def micros(count: int, rank: int, world: int) -> list[MicroBatch]:
    """This rank's of `count` micro-batches: a short sequence each, whose losses add up to a mean."""
    made = []
    for number in range(rank, count, world):
        random = np.random.default_rng(number)
        tokens = random.integers(0, VOCABULARY, (1, WIDTH))
        places = np.arange(WIDTH - 1)
        whole = np.ones(WIDTH - 1, np.float32)
        share, none = whole / np.float32(count * (WIDTH - 1)), whole * 0
        columns = (share, none, whole, none, whole > 0, whole < 0, none, places * 0, places)
        made.append(MicroBatch(tokens, np.arange(WIDTH)[None], places, tokens[0, 1:], *columns))
    return made


class Summing:
    """One rank, in a process of its own."""

    def __init__(self, rank: int, world: int, master: tuple[str, int], model_path: str):
        self._rank, self._world, self._model_path = rank, world, model_path
        torch.manual_seed(0)
        join_ranks(rank, world, master, "cpu", 120.0)

    def step(self, zero: int, dtype: str, count: int, offload: str = "none") -> tuple[float, np.ndarray]:
        """One step: the norm that was told, and what the optimizer took of the gradient, float32, on this rank."""
        trainer = self._trainer(zero, dtype, offload)
        taken = []
        trainer.training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: taken.extend(
                part.grad.detach().float().flatten().clone()
                for group in optimizer.param_groups
                for part in group["params"]
                if part.grad is not None
            )
        )
        result = trainer.step(micros(count, self._rank, self._world), 0)
        trainer.training.free()
        assert result.applied
        return result.gradient_norm, torch.cat(taken).numpy()

    def lives(self, zero: int, folder: str, offload: str = "none") -> tuple[bool, bool, bool]:
        """In bfloat16: whether a gradient that is not finite was told and moved nothing, whether a step after it moved
        something, and whether the step after a checkpoint is bit for bit the one after loading it."""
        trainer = self._trainer(zero, "bfloat16", offload)
        trainer.step(micros(4, self._rank, self._world), 0)
        before = trainer.full_state()
        bad = [replace(micro, coefficients=micro.coefficients * np.inf) for micro in micros(4, self._rank, self._world)]
        told = not trainer.step(bad, 1).applied and same(trainer.full_state(), before)
        second = [replace(micro, update=1) for micro in bad]
        told = told and not trainer.step([*micros(4, self._rank, self._world), *second], 1).applied
        trainer.save(Path(folder))
        moved = trainer.step(micros(8, self._rank, self._world), 2).applied
        after = trainer.full_state()
        moved = moved and (self._rank > 0 or not same(after, before))
        trainer.training.free()
        trainer = self._trainer(zero, "bfloat16", offload)
        trainer.load(Path(folder))
        trainer.step(micros(8, self._rank, self._world), 2)
        equal = same(trainer.full_state(), after)
        trainer.training.free()
        return told, moved, equal

    def left(self, folder: str, zero: int, dtype: str, offload: str) -> tuple[dict, dict]:
        """The state after a step, with a checkpoint of it, and after a step more."""
        trainer = self._trainer(zero, dtype, offload)
        trainer.step(micros(8, self._rank, self._world), 0)
        trainer.save(Path(folder))
        saved = trainer.full_state()
        trainer.step(micros(8, self._rank, self._world), 1)
        later = trainer.full_state()
        trainer.training.free()
        return saved, later

    def taken_over(self, folder: str, zero: int, dtype: str, offload: str) -> tuple[dict, dict]:
        """The state after loading what `left` has written, under whichever stage, which is written anew into its folder
        `again`, and the state after a step more."""
        trainer = self._trainer(zero, dtype, offload)
        trainer.load(Path(folder))
        trainer.save(Path(folder, "again"))
        loaded = trainer.full_state()
        trainer.step(micros(8, self._rank, self._world), 1)
        later = trainer.full_state()
        trainer.training.free()
        return loaded, later

    def unwritten(self, folder: str, who: int) -> str:
        """What a checkpoint comes to on this rank where rank `who` has no room for its part: what rank 0 raises, which
        then ends the others, and why these ended."""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def write() -> None:
            if self._rank == who:
                raise full

        rank = Rank.__new__(Rank)
        rank.spec = SimpleNamespace(rank=self._rank)
        commands = Commands(dist.group.WORLD, self._world, rank._obey)
        rank._parts = Future()
        rank._parts.set_result(SimpleNamespace(trainer=SimpleNamespace(save=lambda _: together(write))))
        if self._rank:
            return commands.follow()
        try:
            commands.give("checkpoint", folder)
        except Exception as error:
            commands.end("failed")
            return f"{type(error).__name__}: {error}"
        raise AssertionError("it was written")

    def updates(self, batches: Sequence[Sequence[Group]], settings: LearnerSettings) -> tuple[dict, float | None]:
        """A step on each of the batches: the state on rank 0, and the share of tokens that were cut in the last."""
        trainer = Trainer(settings, self._model_path, steps=len(batches))
        for step, groups in enumerate(batches):
            result = trainer.step(prepare(groups, step, settings).micros[self._rank], step)
        state = trainer.full_state()
        trainer.training.free()
        return state, report(result.stats).masked_share

    def _trainer(self, zero: int, dtype: str, offload: str) -> Trainer:
        settings = LearnerSettings(
            zero=zero,
            offload=offload,
            gpus=float(offload != "none"),  # on CPUs it is refused, where the host's memory is all there is
            ranks=self._world,
            attention="eager",
            objective={"name": "sft"},
            optimizer={"lr": 1e-3, "clip": 1e9},
        )
        return Trainer(settings, self._model_path, steps=3, dtype=dtype)


def same(one: dict, other: dict) -> bool:
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
