"""A learner that dies between its step and its commit, resumed over the same spool, trains on exactly the groups that
an undisturbed one trains on: step by step the same, each once, none skipped, to the same weights bit by bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import ray
from support.ports import free_port
from support.waiting import deadline_s, until
from test_learner_ranks import BATCH, SEED, Controller, cluster, fill, groups, model_path, replay, settings  # noqa: F401

from learner.checkpoint import newest
from learner.ranks.rank import Rank, RankSpec
from protocols.reports import LearnerEnded
from replay.client import Client
from replay.config import Endpoints

pytestmark = pytest.mark.ray

STEPS, EVERY = 6, 2  # a checkpoint after each second step
NEVER = ("", 0)
FAULTS = [  # where an incarnation ends, in which step; the last step that replay knows of; its checkpoint
    ("before commit", 3, 2, 2),
    ("before checkpoint", 4, 4, 4),
    ("after commit", 5, 5, 4),
]


class Doomed(Rank):
    """A rank that notes what it trained on, and kills its own process at a chosen call to replay."""

    def arm(self, notes: str, fault: tuple[str, int]) -> None:
        commit, checkpoint = Client.commit, Client.checkpoint

        def reach(moment: str, step: int) -> None:
            if (moment, step) == fault:
                assert self.prefetch.ready(30), "the next batch is claimed, too"
                os.kill(os.getpid(), signal.SIGKILL)

        def watched_commit(client: Client, ids: list[bytes], step: int, priorities=None) -> None:
            note(
                notes,
                {"incarnation": self.parts.progress.incarnation, "step": step, "ids": [group.hex() for group in ids]},
            )
            assert self.parts.progress.step == self.parts.trainer.training.engine.global_steps == step, (
                "the optimizer has done this step"
            )
            reach("before commit", step)
            commit(client, ids, step, priorities)
            reach("after commit", step)

        def watched_checkpoint(client: Client, step: int) -> None:
            assert newest(self.spec.run_dir).name == f"step-{step:06d}", "the checkpoint is on the disk"
            reach("before checkpoint", step)
            checkpoint(client, step)

        Client.commit, Client.checkpoint = watched_commit, watched_checkpoint


def note(file: str, fields: dict) -> None:
    """Appends a line in one write, so that it outlives a kill."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, json.dumps(fields).encode() + b"\n")
    os.close(descriptor)


class Run:
    """A spool with as many groups as the run uses, a run folder, and what the learner's lives noted."""

    def __init__(self, model: str, endpoints: Endpoints, folder: Path, client: Client):
        self.model, self.endpoints, self.folder, self.client = model, endpoints, folder, client
        self.notes = str(folder.parent / "notes")
        self.made = groups(STEPS * BATCH)
        fill(endpoints, self.made)

    def live(self, fault: tuple[str, int] = NEVER, resume: bool = False) -> tuple[int, bool]:
        """One incarnation of the learner; the step that it began with, and whether it survived to the end."""
        choice = settings(checkpoint_every=EVERY)
        spec = RankSpec(0, 1, choice, self.model, self.folder, "run", SEED, (self.endpoints,), None, steps=STEPS)
        rank = ray.remote(num_cpus=0, max_concurrency=3)(Doomed).remote(spec)
        controller = ray.remote(num_cpus=0)(Controller).remote()
        port = free_port()
        began = ray.get(rank.setup.remote(("127.0.0.1", port), resume), timeout=deadline_s(120)).step
        ray.get([rank.arm.remote(self.notes, fault), rank.announce.remote(controller)], timeout=deadline_s(120))
        try:
            returned = ray.get(rank.run.remote(controller, STEPS), timeout=deadline_s(120))
        except ray.exceptions.RayActorError:
            return began, False
        assert returned == LearnerEnded(STEPS, "done")
        ray.kill(rank)
        return began, True

    def trained(self) -> list[tuple[int, int, list[str]]]:
        """Each step of each incarnation, in order: incarnation, step, groups."""
        lines = map(json.loads, Path(self.notes).read_text().splitlines())
        return [(line["incarnation"], line["step"], line["ids"]) for line in lines]

    def weights(self) -> bytes:
        assert newest(self.folder).name == f"step-{STEPS:06d}"
        return (newest(self.folder) / "model" / "model.safetensors").read_bytes()

    def check_end(self) -> None:
        """Replay has nothing left: every group was used and is covered by the last checkpoint."""
        stats = until(lambda: not (found := self.client.stats()).used and found, "used groups are forgotten")
        assert (stats.ready, stats.claimed, stats.rows, stats.dropped) == (0, 0, 0, {})
        assert (stats.trained_total, stats.step) == (STEPS * BATCH, STEPS)


@contextmanager
def a_run(model: str) -> Iterator[Run]:
    with replay() as (endpoints, folder):
        with closing(Client([endpoints], "test")) as client:
            yield Run(model, endpoints, folder, client)


def undisturbed(model: str) -> tuple[dict[int, list[str]], bytes]:
    """The groups of each step, and the last weights."""
    with a_run(model) as run:
        assert run.live() == (0, True)
        run.check_end()
        history = {step: ids for _, step, ids in run.trained()}
        order = [group.id.hex() for group in run.made]
        assert [group for step in range(1, STEPS + 1) for group in history[step]] == order, "fifo, each once"
        return history, run.weights()


@pytest.mark.prove
def test_a_learner_that_dies_again_and_again_trains_on_what_an_undisturbed_one_does(model_path):  # noqa: F811
    history, weights = undisturbed(model_path)
    began = 0
    with a_run(model_path) as run:
        for incarnation, (moment, last, committed, saved) in enumerate(FAULTS):
            assert run.live((moment, last), resume=incarnation > 0) == (began, False), (
                f"incarnation {incarnation} dies {moment}"
            )
            check_death(run, incarnation, began, last, committed)
            began = saved
        assert run.live(resume=True) == (began, True)
        run.check_end()
        trained = run.trained()
        assert all(ids == history[step] for _, step, ids in trained), "also what is done again is the same"
        ends = [saved for *_, saved in FAULTS] + [STEPS]
        kept = [(step, ids) for incarnation, step, ids in trained if step <= min(ends[incarnation:])]
        assert kept == [(step, history[step]) for step in range(1, STEPS + 1)]
        assert run.weights() == weights
    print(
        f"{len(FAULTS) + 1} lives trained {len(trained)} steps, {len(trained) - STEPS} of them lost: {STEPS} count, "
        f"{STEPS * BATCH} groups each once as without the kills; the weights are equal bit by bit"
    )


def check_death(run: Run, incarnation: int, began: int, last: int, committed: int) -> None:
    """It died in the chosen step and on the chosen side of its commit, with a batch that was fetched ahead."""
    assert [step for mine, step, _ in run.trained() if mine == incarnation] == list(range(began + 1, last + 1))
    stats = run.client.stats()
    assert (stats.step, stats.trained_total) == (committed, committed * BATCH)
    assert stats.claimed == (last + 1 - committed) * BATCH
    print(f"incarnation {incarnation} died in step {last}; replay: {committed} steps, {stats.claimed} groups claimed")
