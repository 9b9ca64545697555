"""A fleet follows its size: who finds no room waits for it, who leaves gives to others what it cannot end in time.

The controller, replay and the actors are those of a run, on a cluster that gets a second node. Engines are scripted,
and the learner only claims and commits.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support import waiting
from support.places import PYTHONPATH
from support.waiting import deadline_s

from benchmarks.scale_parts import Consumer, start_consumer
from protocols import process_folder
from protocols.reports import LearnerEnded, RunStatus, StepReport
from redraft import run as runs
from redraft.control import autoscale
from redraft.control import workers as parts
from redraft.control.client import actor_name  # sets what Ray reads when it is imported
from redraft.control.controller import Controller
from redraft.control.exchange import Exchange
from redraft.models import make as models
from redraft.owner import Owner
from redraft.recipe import build
from replay.tools.verify import Corruption, verify

pytestmark = pytest.mark.ray

START_S = 25.0
RECIPE = {
    "name": "scaled",
    "steps": 999_999,
    "start_s": START_S,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "signs"},
    "rollout": {"name": "benchmarks.scale_parts:play", "turns": 3, "options": {"environment_s": 0.0, "publish_s": 5.0}},
    "sampling": {"max_tokens": 9},
    "actors": {
        "count": 1,
        "groups": 4,
        "drain_s": 0.5,
        "engine": {"name": "scripted", "first_token_s": 1.0, "max_length": 128},
    },
    "learner": {"batch_groups": 4, "max_staleness": 512, "row_tokens": 256, "credit": {"name": "raw"}},
    "evaluation": {"n": 1, "independent": 1, "greedy": False},
}


class Noting(Consumer):
    """Remembers which groups it used."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._used: list[bytes] = []

    def commit(self, groups, step):
        super().commit(groups, step)
        self._used += groups

    def used(self) -> list[bytes]:
        return self._used


class Working(Consumer):
    """Works a while on each batch, publishes what it has made of it, and reports the step, as a learner does."""

    work_s = 1.3

    def work(self, seconds: float) -> None:
        """So long for each batch from now on."""
        self.work_s = seconds

    def run(self, controller, until_step):
        step = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            while not (groups := self._claim(step)) and not self._stopping.is_set():
                continue  # each claim waits for a while
            waited_s = time.monotonic() - began
            self._stopping.wait(self.work_s)  # in the place of training
            step += 1
            self.commit([group.id for group in groups], step)
            self._publish(controller, step)
            seconds = {"wait": waited_s, "train": time.monotonic() - began - waited_s}
            controller.step_done.remote(StepReport(step=step, version=step, seconds=seconds))
        return LearnerEnded(step, "stopped")


class Noted(Exchange):
    """Remembers which plays ended, and which were taken from an actor that left."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ended: set[tuple[bytes, int]] = set()
        self.taken: set[tuple[bytes, int]] = set()

    def _take(self, number, report):
        live = {(group, play.lease.fencing_token) for group, play in self.parts.book.live.items()}
        self.ended |= live & {(group, lease) for group, lease, _ in report.closed}
        super()._take(number, report)

    def _abandon(self, group, number, why, reason="abandoned"):
        if reason == "drained":
            self.taken.add((group, number))
        super()._abandon(group, number, why, reason)


class Watched(Controller):
    """Says what its exchange remembers, also when it has ended."""

    EXCHANGE = Noted

    def __init__(self, run, recipe, learner=Noting, quiet_s=autoscale.QUIET_S):
        super().__init__(run, recipe, resume=False)
        autoscale.QUIET_S = quiet_s
        parts.start_ranks = functools.partial(start_consumer, kind=learner)

    def work(self, seconds: float) -> None:
        """So long the learner works on each batch from now on."""
        self._state.parts.ranks[0].work.remote(seconds)

    def plays(self) -> tuple[set, set]:
        return self._state.ended, self._state.taken

    def balance(self) -> tuple[list[bytes], dict, str]:
        """The groups that were used, what replay holds, and where it listens. The actors must have ended."""
        import ray

        parts = self._state.parts
        return ray.get(parts.ranks[0].used.remote()), parts.client.stats(), parts.shards.endpoints[0].ingest

    def _close(self):
        """Closes actors only; the rest is looked at, and ends with Ray."""
        self._stopping.set()
        self._state.parts.fleet.close(5.0)


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.cluster_utils import Cluster

    ensure_token_if_auth_enabled()  # only `ray.init` without an address makes the user's token
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    path = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))
    ray.init(
        address=made.address,
        namespace="redraft",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield made
    ray.shutdown()
    made.shutdown()
    process_folder.sweep()  # as a command does whose Ray has ended: owners of weight files are ended with it here


@pytest.fixture
def controller(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return started(build(RECIPE), tmp_path)


def started(recipe, tmp_path: Path, *arguments):
    """The controller of a run of this recipe in this folder."""
    import ray

    model = models.prepare(recipe.model, recipe.environment, tmp_path, print)
    run = replace(runs.create(recipe, str(model), Owner(runs.RUNS / recipe.name, "test")), cluster=True)
    return (
        ray.remote(Watched).options(name=actor_name(run), num_cpus=0, max_concurrency=8).remote(run, recipe, *arguments)
    )


def ask(controller, method: str, *arguments):
    import ray

    return ray.get(getattr(controller, method).remote(*arguments), timeout=deadline_s(30))


def until(controller, condition, what: str, limit_s: float = 60.0) -> RunStatus:
    """Waits until the status is as it should be; returns it."""

    def looked() -> RunStatus | None:
        status = ask(controller, "status")
        assert status.state != "failed", f"{what}: {status}"
        return status if condition(status) else None

    return waiting.until(looked, lambda: f"{what}: {ask(controller, 'status')}", limit_s)


def states(status: RunStatus) -> dict[str, str]:
    return {actor.name: actor.state for actor in status.actors}


def owners() -> list[psutil.Process]:
    """The processes that own weight files."""
    children = psutil.Process().children(recursive=True)  # Ray adds the method that runs to a process's title
    return [found for found in children if "".join(found.cmdline()[:1]).startswith("ray::NodeFiles")]


@pytest.mark.prove
def test_the_fleet_follows_its_size_and_no_acknowledged_group_is_lost(cluster, controller, tmp_path):
    import ray

    ended = controller.run.remote()
    until(controller, lambda status: status.state == "training", "training")
    said = ask(controller, "scale", 2)
    assert (said.before, said.note) == (
        1,
        "there is room for 1 actor of 1 CPU each; the others wait for nodes to join",
    )
    began = time.monotonic()
    no_room = {"actor-0": "ready", "actor-1": "waiting for resources"}
    until(controller, lambda status: states(status) == no_room, "no room for a second actor")
    status = until(controller, lambda status: time.monotonic() - began > START_S + 1, "longer than a start may take")
    assert states(status) == no_room and not any("replaced" in event for event in status.events)
    closed = len(ask(controller, "plays")[0])
    assert closed > 4, "the run goes on meanwhile"

    cluster.add_node(num_cpus=1, include_dashboard=False)
    until(controller, lambda status: states(status) == dict.fromkeys(no_room, "ready"), "the node's actor")
    assert len(owners()) == 2
    until(controller, lambda status: all(actor.playing for actor in status.actors), "both play")
    assert ask(controller, "scale", 1).before == 2
    status = until(controller, lambda status: len(states(status)) == 1, "one actor")
    assert status.actors_target == 1

    def given_again() -> bool:
        plays, taken = ask(controller, "plays")
        again = {(group, number + 1) for group, number in taken}
        return bool(taken) and again <= plays and not taken & plays

    until(controller, lambda status: given_again(), "what was taken from the actor is played by the other")
    until(controller, lambda status: len(owners()) == 1, "nothing keeps Ray from taking the node away")
    ask(controller, "stop")
    assert ray.get(ended, timeout=deadline_s(60)).state == "stopped"
    used, held, ingest = ask(controller, "balance")
    plays, taken = ask(controller, "plays")
    print(f"{len(plays)} plays ended, {len(taken)} taken back, {len(used)} groups used")
    groups = {group for group, _ in plays}
    assert len(groups) == len(plays) and len(used) == len(set(used)), "none is played to its end, or used, twice"
    assert set(used) <= groups and len(groups - set(used)) <= held.ready + held.claimed
    assert ingest.startswith("tcp://"), "a node that joins can reach replay"
    assert not [found for found in verify(tmp_path / "runs/scaled/spool/0") if isinstance(found, Corruption)]


@pytest.mark.prove
def test_a_run_that_sizes_itself_grows_to_what_the_learner_needs_and_shrinks_when_it_needs_less(
    cluster, tmp_path, monkeypatch
):
    """An actor plays a group of a batch of four in 1.2 s, so that batches take one 4.8 s, and four 1.2: as long as the
    learner works on one at first. Then it works three times as long, and two are enough."""
    import ray

    monkeypatch.chdir(tmp_path)
    actors = {"count": 1, "groups": 1, "cpus": 0.1, "drain_s": 5.0, "autoscale": {"max": 8}}
    engine = {"name": "scripted", "first_token_s": 0.4, "max_length": 128}
    learner = RECIPE["learner"] | {"max_staleness": 2}
    recipe = build(
        RECIPE | {"name": "sized", "actors": actors | {"engine": engine}, "learner": learner, "start_s": 60.0}
    )
    controller = started(recipe, tmp_path, Working, 2.0)
    ended = controller.run.remote()
    until(controller, lambda status: status.state == "training", "training")
    began = time.monotonic()
    until(controller, lambda status: list(states(status).values()) == ["ready"] * 4, "four actors", 180)
    grown = time.monotonic()
    ask(controller, "work", 3.6)
    until(controller, lambda status: list(states(status).values()) == ["ready"] * 2, "two actors", 240)
    print(
        f"four actors after {grown - began:.0f} s, two {time.monotonic() - grown:.0f} s after the learner slowed down"
    )
    asked = [event.split()[1] for event in ask(controller, "status").events if "actors asked for" in event]
    assert asked == ["2", "4", "3", "2"]
    ask(controller, "stop")
    assert ray.get(ended, timeout=deadline_s(60)).state == "stopped"
