"""`redraft replay train`: trains a run again from its journal, and compares the weights of each version."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from learner import journal
from learner.ranks.again import Made, train_again
from learner.ranks.rank import RankSpec
from protocols import own_code
from protocols.errors import FaultError, RedraftError, SettingError
from redraft import recipe as recipes
from redraft import records
from redraft import run as runs
from redraft.models import make as models
from redraft.run import Run

POLL_S = 1.0  # between two looks whether a rank has died
END_S = 30.0  # that ranks have to end when all is done
TO = "--to"


def again(run: Run, to: int | None, out: Path | None, cache: Path) -> Iterator[Made]:
    """Trains the steps of a run again, up to `to` (None: all that it has done), and yields what each made.

    Raises SettingError where the journal does not hold the steps that are asked for, FaultError where a rank died.
    """
    recipe = recipes.load(run.folder / "recipe.yaml")
    last = check(run, to)
    if out is not None and out.exists():
        raise SettingError("--out", f"{out} exists", "Name a folder that is not there yet")
    if recipe.learner.gpus and recipe.learner.ranks > 1:
        cure = "Runs of one rank, or of ranks on the CPU, can be"
        raise SettingError("learner.ranks", "several ranks on GPUs cannot be trained again", cure)
    specs = [
        RankSpec(
            rank=rank,
            world=recipe.learner.ranks,
            settings=recipe.learner,
            model_path=str(models.wanted(run, recipe).here(cache)),
            run_dir=run.folder,
            run_id=run.id,
            seed=recipe.seed,
            shards=(),
            keys=None,
            steps=recipe.steps,
            device="cuda" if recipe.learner.gpus else "cpu",
            dtype=recipe.model.dtype,
            temperature=recipe.sampling.temperature,
            lora=recipe.model.lora,
            code=runs.code(run.folder, recipe),
        )
        for rank in range(recipe.learner.ranks)
    ]
    return _of_ranks(specs, last, out)


def check(run: Run, to: int | None) -> int:
    """The last step to train. Raises SettingError where it was not done, or the journal lacks one up to it."""
    kept = journal.steps(run.folder)
    if not kept:
        cure = "Train with learner.record.batches=true, from the first step on"
        raise SettingError("RUN", f"{run.name} has kept no batches", cure)
    done = max((line.report.step for line in records.steps(records.step_lines(run.folder))), default=0)
    last = done if to is None else to
    if not 0 < last <= done:
        raise SettingError(TO, f"{last}, and {run.name} has done {done} steps", f"Choose 1 to {done}")
    if missing := sorted(set(range(1, last + 1)) - set(kept)):
        before = f"Stop before it, with {TO} {missing[0] - 1}" if missing[0] > 1 else "It has to be kept from step 1 on"
        raise SettingError("RUN", f"{run.name} has not kept the batch of step {missing[0]}", before)
    return last


def _of_ranks(specs: list[RankSpec], last: int, out: Path | None) -> Iterator[Made]:
    os.environ["OMP_NUM_THREADS"] = str(specs[0].settings.threads)  # read by the ranks' libraries when they are loaded
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = probe.getsockname()
    ranks = [context.Process(target=_rank, args=(sender, spec, master, last, out), daemon=True) for spec in specs]
    for rank in ranks:
        rank.start()
    sender.close()
    try:
        while (found := _received(receiver, ranks)) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
        for rank in ranks:
            rank.join(END_S)
    finally:
        receiver.close()
        for rank in ranks:
            rank.kill()


def _received(receiver: Connection, ranks: list) -> Made | Exception | None:
    """What a rank sends next; None when all is done. Raises FaultError where one has died."""
    while not receiver.poll(POLL_S):
        for number, rank in enumerate(ranks):
            if rank.exitcode:
                raise FaultError(f"rank {number} ended with exit code {rank.exitcode} while it trained again")
    try:
        return receiver.recv()
    except EOFError:
        return None


def _rank(sender: Connection, spec: RankSpec, master: tuple[str, int], last: int, out: Path | None) -> None:
    """One rank, in a process of its own; rank 0 sends what it makes, any sends the error that ends it."""
    logging.basicConfig(level=logging.WARNING)
    own_code.install(spec.code)
    try:
        for made in train_again(spec, master, last, out):
            if spec.rank == 0:
                sender.send(made)
    except RedraftError as error:
        sender.send(error)
    sender.close()
