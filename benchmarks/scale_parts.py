"""What `benchmarks.scale` puts in the place of models: hosts of many actors, a learner that only claims, and a
controller that counts."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray

from actors.actor import Actor
from actors.contract import Report, Spec
from actors.rollouts import Stage
from protocols.errors import RedraftError
from protocols.metrics_page import Listen
from protocols.reports import LearnerEnded, LearnerReady
from protocols.turns import TOKENS, Role
from protocols.weights import Probe
from redraft import logs
from redraft.control import workers as parts
from redraft.control.controller import Controller
from redraft.control.exchange import Exchange
from redraft.recipe import Recipe
from redraft.run import Run
from replay.client import Client

log = logging.getLogger("redraft.scale")
HOSTS = 2
PROMPT = np.arange(32, dtype=TOKENS) % 8
CLAIM_S = 1.0
CHECKPOINT_STEPS = 16


async def play(stage: Stage) -> None:
    """A rollout: the turns of each episode one after another, each after the engine's latency and the environment's."""
    environment_s = stage.settings.options["environment_s"]
    for episode in range(stage.settings.episodes):
        parent = -1
        for index in range(stage.settings.turns):
            completion = await stage.generate(PROMPT, Role.ATTEMPT)
            await asyncio.sleep(environment_s)
            parent = stage.group.turn(
                Role.ATTEMPT,
                parent,
                PROMPT,
                completion,
                episode=episode,
                index=index,
                reward=float(index % 2),
                environment_s=environment_s,
                extra={"success": False},
            )


# Actors.


class Hosted(Actor):
    """One of many in a process."""

    def __init__(self, spec: Spec, name: str, files):
        super().__init__(spec, name, files)
        self._report.node_id = ray.get_runtime_context().get_node_id()


class Host:
    """A process with many actors on one event loop: each is an `actors.actor.Actor` with an engine and a producer."""

    def __init__(self, folder: str, run: str, number: int, spec: Spec):
        from transformers import AutoTokenizer

        logs.to_file(Path(folder), run, f"host-{number}")
        AutoTokenizer.from_pretrained = functools.cache(AutoTokenizer.from_pretrained)  # one for all actors here
        self._spec, self._files, self._actors = spec, parts.files_here(spec.run_id), {}

    async def apply(self, name: str, func, **named):
        """What Ray's actor manager asks of an actor, for the one of that name."""
        if name not in self._actors:
            self._actors[name] = Hosted(self._spec, name, self._files)
        return await self._actors[name].apply(func, **named)

    async def leave(self, name: str) -> None:
        await self._actors.pop(name).close()


class Seat:
    """An actor in a host, as if it were a Ray actor of its own."""

    def __init__(self, host, name: str):
        self._actor_id = host._actor_id
        self.apply, self.close = Method(host.apply, name), Method(host.leave, name)


class Method:
    def __init__(self, method, name: str):
        self._method, self._name = method, name

    def remote(self, **named):
        return self._method.remote(self._name, **named)


# The learner.


class Consumer:
    """In the place of the learner's rank 0: claims batches and commits them as it does, and trains nothing.

    Its weights are a few bytes that take the way of weights every `publish_s`.
    """

    def __init__(self, run: Run, recipe: Recipe, shards: tuple, keys):
        self._recipe, self._vocabulary = recipe, _vocabulary(run.model)
        self._stopping = threading.Event()
        self._busy_s = 0.0
        self._clients = [Client(shards, "learner-0", keys) for _ in range(2)]

    def address(self) -> tuple[str, int]:
        return "", 0

    def serves(self, listen: Listen) -> tuple[str, int]:
        return "127.0.0.1", 0  # no metrics

    def held(self, limit: str, change: int) -> None:
        """Its wait is told by `busy_s` alone."""

    def arrived(self, version: int) -> None:
        """It waits for no evaluation, as it trains nothing."""

    def setup(self, master: tuple[str, int], resume: bool) -> LearnerReady:
        bound = self._recipe.learner.max_staleness
        assert bound != "auto", "its recipes say the bound"
        return LearnerReady(step=0, incarnation=0, trained=0, bound=bound)

    def announce(self, controller) -> None:
        from learner.weights.publish import Versions

        here = ray.get_runtime_context()
        self._versions = Versions(here.get_node_id(), here.current_actor)
        self._publish(controller, 0)

    def blob(self, version: int) -> list:
        """See Versions."""
        return self._versions.blob(version)

    def run(self, controller, until_step: int) -> LearnerEnded:
        """Until `stop`. The next batch is claimed while this one is committed."""
        step, published, publish_s = 0, time.monotonic(), self._recipe.rollout.options["publish_s"]
        with ThreadPoolExecutor(1) as pool:
            claim = pool.submit(self._claim, step)
            while not self._stopping.is_set():
                groups = claim.result()
                began = time.monotonic()
                claim = pool.submit(self._claim, step + bool(groups))
                if groups:
                    step += 1
                    self.commit([group.id for group in groups], step)
                if began - published > publish_s:
                    self._publish(controller, step)
                    published = began
                self._busy_s += time.monotonic() - began
            claim.result()
        return LearnerEnded(step, "stopped")

    def commit(self, groups: list[bytes], step: int) -> None:
        self._clients[0].commit(groups, step)
        if step % CHECKPOINT_STEPS == 0:
            self._clients[0].checkpoint(step)

    def stop(self, ended: bool = False) -> None:
        self._stopping.set()

    def grow(self, shards: tuple) -> None:
        for client in self._clients:
            client.grow(shards)

    def busy_s(self) -> float:
        """Seconds in which it did not wait for groups."""
        return self._busy_s

    def _claim(self, step: int) -> list:
        learner = self._recipe.learner
        return self._clients[1].claim(learner.batch_groups, step, learner.max_staleness, CLAIM_S).groups

    def _publish(self, controller, step: int) -> None:
        import torch

        tokens = tuple(range(8))
        logprobs = tuple(np.full(len(tokens) - 1, -np.log(self._vocabulary)).tolist())
        self._versions.write({"step": torch.tensor([step])}, step)
        controller.announce.remote(self._versions.ref(step, Probe(tokens, logprobs, 1e-6)))


def start_consumer(run: Run, recipe: Recipe, shards: tuple, keys, seats, kind: type = Consumer) -> list:
    """What `parts.start_ranks` does, for a consumer."""
    part = ray.remote(kind).options(num_cpus=0, max_concurrency=8, runtime_env=parts.worker_environment(1))
    return [part.remote(run, recipe, shards, keys)]


def _vocabulary(model: str) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(model))


# The controller.


class CountingExchange(Exchange):
    """Counts how long leases are held."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._held_s: list[float] = []
        self._reports = 0

    def _take(self, number: int, report: Report) -> None:
        if report.abandoned:
            raise RedraftError(f"actor-{number} abandoned a group: {report.abandoned[0][2]}")
        self._reports += 1
        now, live = time.monotonic(), self.parts.book.live
        self._held_s += [now - live[group].since for group, *_ in report.closed if group in live]
        super()._take(number, report)

    def counts(self) -> dict:
        """Rows that replay has stored, exchanges so far and what one costs, how long the leases were held that ended
        since the last call, the learner's time."""
        held_s, self._held_s = self._held_s, []
        busy_s = ray.get(self.parts.ranks[0].busy_s.remote())
        stored = self.parts.client.stats().stored
        exchanges = {"exchanges": self._reports, "exchange_s": self._pace.exchange_s}
        return {"rows": stored, "held_s": held_s, "busy_s": busy_s, "at": time.monotonic()} | exchanges


class CountingController(Controller):
    """The controller with these parts in the place of actors with models and of the learner; it counts what passes."""

    EXCHANGE = CountingExchange

    def __init__(self, run: Run, recipe: Recipe):
        super().__init__(run, recipe, resume=False)
        parts.start_ranks, parts.actor_maker = start_consumer, self._seats

    def _seats(self, run: Run, recipe: Recipe, keys):
        spec = parts.spec_of(run, recipe, keys)
        part = ray.remote(Host).options(num_cpus=0, max_concurrency=4000, runtime_env=parts.worker_environment(1))
        hosts = [part.remote(str(run.folder), run.name, number, spec) for number in range(HOSTS)]
        return lambda name: Seat(hosts[int(name.rpartition("-")[2]) % HOSTS], name)

    def counts(self) -> dict:
        """See CountingExchange; only while it trains."""
        return self._state.counts()
