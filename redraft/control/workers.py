"""The parts of a run as Ray actors: where each process runs, what it needs, and how it logs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.actor import Actor
from actors.config import ActorSettings
from actors.contract import Spec
from actors.transports import NodeFiles
from learner.bound import most_of
from learner.config import LearnerSettings
from learner.ranks.rank import Rank, RankSpec
from protocols import cache, metrics_page, own_code, process_folder, traces
from protocols.errors import DeadlineError, SettingError
from protocols.metrics_page import Listen
from protocols.reports import LearnerReady
from protocols.turns import Lease
from redraft import logs
from redraft import run as runs
from redraft.config import LogSettings
from redraft.control import discovery, faults, standby
from redraft.control.admission import groups_in_play
from redraft.control.fleet import Fleet
from redraft.models import make as models
from redraft.models.make import Wanted
from redraft.recipe import Recipe
from redraft.run import Run
from replay.config import ClientKeys, Endpoints, ReplaySettings

log = logging.getLogger("redraft.workers")
CALLS = 8  # methods of one process that may run at once
LOOK_S = 2.0  # between two looks for nodes that have joined
SPARE_S = 30.0  # that a node keeps its weight files without actors: one that is restarted comes back to them
SOCKET_FOLDER = 107 - 37  # bytes of a folder in which vLLM can name a socket by a UUID
STEPS_BEFORE = 3  # that a rank makes before others are started to stand by
FILES_S = 60.0  # that an actor waits for the weight files of its node, which may have joined just before


def worker_environment(threads: int, more: Mapping[str, str] | None = None) -> dict:
    """Variables that a worker's libraries read when they are imported, and where it finds its modules; and more."""
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        "env_vars": {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in (Path(__file__).parents[2], *paths)),
            **(more or {}),
        }
    }


class ReplayPart:
    """The replay service in a process of its own. A restart binds the same endpoints and reads the same spool."""

    def __init__(
        self,
        run: Run,
        shard: int,
        endpoints: Endpoints,
        settings: ReplaySettings,
        listen: Listen,
        log_settings: LogSettings,
    ):
        from replay.server.service import Service

        run.check()
        logs.of_part(run.folder, run.name, f"replay-{shard}", log_settings)
        self._service = Service(run.spool(shard), endpoints, settings, run.id, run.keys)
        self._service.start()
        self._port = metrics_page.serve(0, "replay", listen)
        self._closing = False
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def serves(self) -> tuple[str, int]:
        """Where it serves its metrics."""
        return ray.util.get_node_ip_address(), self._port

    def close(self) -> None:
        self._closing = True
        self._service.stop()
        traces.flush()

    def _watch(self) -> None:
        """When the service's thread fails, the process ends, so that Ray starts it again on the same spool."""
        try:
            self._service.join()
        except Exception:
            log.exception("the replay service failed; its process ends and is started again")
        if not self._closing:
            os._exit(1)


class ActorPart(Actor):
    """An actor that logs into the run folder, and finds the model and the weight files on its node."""

    def __init__(self, folder: str, run: str, spec: Spec, name: str, log_settings: LogSettings, model: Wanted | None):
        logs.of_part(Path(folder), run, name, log_settings)
        standby.taken(name)
        self._temporary = process_folder.temporary(spec.run_id)  # before vLLM is imported, which reads where that is
        if len(os.fsencode(self._temporary)) > SOCKET_FOLDER:
            os.environ.setdefault("VLLM_RPC_BASE_PATH", str(self._temporary.parent))
        own_code.install(spec.code)
        self._model, self._played = model, 0
        super().__init__(spec, name, files=None, node=ray.get_runtime_context().get_node_id())
        self._report.address = ray.util.get_node_ip_address()

    async def _build(self):
        if self._model is not None:
            self._starting("model")
            try:
                found = await asyncio.to_thread(self._model.here, cache.folder("models"))
            except SettingError:
                self._report.fatal = True  # the same for every actor that would come in its place
                raise
            self._spec = replace(self._spec, model=str(found))
        return await super()._build()

    async def _play(self, lease: Lease) -> None:
        await super()._play(lease)
        self._played += 1
        if self._played == self._spec.actors.groups:  # it is at work: what is imported now delays no start
            standby.keep()

    async def close(self) -> None:
        await super().close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    async def _node_files(self):
        if self._files is None:
            self._files = await asyncio.to_thread(files_here, self._spec.run_id)
        return self._files


class RankPart(Rank):
    """A learner rank that logs into the run folder, and finds the model on its node."""

    def __init__(self, run: str, spec: RankSpec, log_settings: LogSettings, model: Wanted):
        logs.of_part(spec.run_dir, run, f"learner-{spec.rank}", log_settings)
        standby.taken(f"learner-{spec.rank}")
        own_code.install(spec.code)
        super().__init__(spec)
        self._model, self._steps = model, 0

    def setup(self, master: tuple[str, int], resume: bool) -> LearnerReady:
        self.spec = replace(self.spec, model_path=str(self._model.here(cache.folder("models"))))
        return super().setup(master, resume)

    def _obey(self, kind: str, payload):
        result = super()._obey(kind, payload)
        self._steps += kind == "step"
        if kind == "step" and self._steps == STEPS_BEFORE:
            standby.keep()
        return result

    def serves(self, listen: Listen) -> tuple[str, int]:
        """Where it serves its metrics."""
        return ray.util.get_node_ip_address(), self.serve_metrics(listen)

    def address(self) -> tuple[str, int]:
        """This node and a free port of it, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]


def endpoints(folder: Path | None) -> Endpoints:
    """Where a shard of replay listens: in a folder of its own beneath this one, or at free tcp ports of this node."""
    if folder is not None:
        own = tempfile.mkdtemp(dir=folder, prefix="")  # private to the user; short, as ipc paths have to be
        return Endpoints(f"ipc://{own}/ingest", f"ipc://{own}/serve")
    address = ray.util.get_node_ip_address()
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        second.bind(("", 0))
        return Endpoints(f"tcp://{address}:{first.getsockname()[1]}", f"tcp://{address}:{second.getsockname()[1]}")


def forget(where: Endpoints) -> None:
    """Removes the folder of ipc endpoints."""
    if where.ingest.startswith("ipc://"):
        shutil.rmtree(Path(where.ingest.removeprefix("ipc://")).parent, ignore_errors=True)


def here() -> NodeAffinitySchedulingStrategy:
    """On the caller's own node: the command's, and so the controller's and replay's, where the run folder is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def needs(settings: ActorSettings | LearnerSettings) -> dict:
    """What a node must have for an actor or a rank to be placed there, as Ray's options."""
    return {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "resources": dict(settings.resources)}


def start_replay(run: Run, recipe: Recipe, shard: int, where: Endpoints):
    """A replay service beside the controller; Ray restarts it when it dies."""
    part = ray.remote(ReplayPart).options(
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=CALLS,
        scheduling_strategy=here(),
        runtime_env=worker_environment(1),
    )
    return part.remote(run, shard, where, recipe.replay, discovery.listen(run, recipe.metrics), recipe.logs)


class Files:
    """The owners of weight files, one on each node that has actors of the run; actors find theirs by name."""

    def __init__(self, run: Run):
        self._run, self._owners, self._next_look = run, {}, 0.0
        self._begins: dict[str, Any] = {}  # of each owner that is not known to have begun, what its first call returns
        self._used: dict[str, float] = {}  # when a node last had actors

    def look(self, fleet: Fleet) -> None:
        """Starts owners where actors have come, and ends them where none is left, so that Ray may take the node away;
        to be called often."""
        if time.monotonic() < self._next_look:
            return
        now, wanted = time.monotonic(), fleet.nodes()
        self._next_look = now + LOOK_S
        self._used |= dict.fromkeys(wanted, now)
        self._drop_failed()
        for node in wanted - self._owners.keys():
            try:
                owner: Any = self._start(node)
            except ValueError as error:  # one that could not be constructed may have its name still
                log.warning("no owner of weight files on node %s yet: %s", node, error)
                continue
            self._owners[node], self._begins[node] = owner, owner.__ray_ready__.remote()
        for node in [node for node in self._owners if now - self._used[node] > SPARE_S]:
            self._begins.pop(node, None)
            self._owners.pop(node).close.remote()  # Ray ends an actor that nobody holds, after its last call

    def _drop_failed(self) -> None:
        """Forgets owners that could not begin, which Ray starts no more: the next look makes others where they are
        still wanted."""
        for node, begins in list(self._begins.items()):
            if not ray.wait([begins], timeout=0)[0]:
                continue
            del self._begins[node]
            try:
                ray.get(begins)
            except RayError as error:
                log.warning("the owner of weight files on node %s: %s", node, faults.of_a_call(error))
                del self._owners[node]

    def forget(self, reader: str) -> None:
        """A reader that leaves may be killed before it says that it is done."""
        for owner in self._owners.values():
            owner.done.remote(reader)

    def close(self, limit_s: float) -> None:
        closes = [owner.close.remote() for owner in self._owners.values()]
        ray.wait(closes, num_returns=len(closes), timeout=limit_s)

    def _start(self, node: str):
        part = ray.remote(NodeFiles).options(
            name=_files_name(self._run.id, node),
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env=worker_environment(1),
        )
        return part.remote(self._run.id)


def files_here(run_id: str):
    """The owner of weight files on this node. Raises DeadlineError when there is none."""
    name, deadline = _files_name(run_id, ray.get_runtime_context().get_node_id()), time.monotonic() + FILES_S
    while True:
        try:
            return ray.get_actor(name)
        except ValueError:
            if time.monotonic() > deadline:
                raise DeadlineError("an actor", "the owner of its node's weight files", FILES_S) from None
            time.sleep(0.1)


def _files_name(run_id: str, node_id: str) -> str:
    return f"files-{run_id}-{node_id}"


def spec_of(run: Run, recipe: Recipe, keys: ClientKeys | None, model: str = "", version: int | None = None) -> Spec:
    """What the actors of a run are made of; with `version`, they play with `model` as it is."""
    return Spec(
        run_id=run.id,
        model=model or run.model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        environments=recipe.mixture,
        rollout=recipe.rollout,
        sampling=recipe.sampling,
        actors=recipe.actors,
        keys=keys,
        version=version,
        listen=discovery.listen(run, recipe.metrics),
        on_rewrite=recipe.model.on_rewrite,
        code=runs.code(run.folder, recipe),
    )


def actor_maker(run: Run, recipe: Recipe, keys: ClientKeys | None, model: str = "", version: int | None = None):
    """A function that makes the actor of a name; see `spec_of`."""
    spec = spec_of(run, recipe, keys, model, version)
    wanted = None if model else models.wanted(run, recipe)
    part, engine = ray.remote(ActorPart), recipe.actors.engine
    kept = recipe.actors.standby and version is None
    environment = worker_environment(engine.threads, standby.variables(ActorPart, run.id, engine) if kept else None)

    def make(name: str):
        return part.options(
            **needs(recipe.actors),
            max_restarts=-1,
            max_concurrency=1000,
            runtime_env=environment,
        ).remote(str(run.folder), run.name, spec, name, recipe.logs, wanted)

    return make


def start_ranks(
    run: Run, recipe: Recipe, shards: tuple[Endpoints, ...], keys: ClientKeys | None, seats: Sequence | None
) -> list:
    """The learner's ranks; `seats` are Ray's scheduling strategies, one a rank, where room is reserved for them."""
    settings: LearnerSettings = recipe.learner
    kept = standby.variables(RankPart, run.id) if settings.standby else None
    part, environment = ray.remote(RankPart), worker_environment(settings.threads, kept)
    options = needs(settings) | {"max_concurrency": CALLS, "runtime_env": environment}
    specs = [
        RankSpec(
            rank=rank,
            world=settings.ranks,
            settings=settings,
            model_path=run.model,
            run_dir=run.folder,
            run_id=run.id,
            seed=recipe.seed,
            shards=shards,
            keys=keys,
            steps=recipe.steps,
            device="cuda" if settings.gpus else "cpu",
            dtype=recipe.model.dtype,
            temperature=recipe.sampling.temperature,
            lora=recipe.model.lora,
            rests=recipe.actors.sleep,
            evaluated=recipe.evaluation.every is not None,
            most_stale=most_of(groups_in_play(recipe), settings.batch_groups),
            code=runs.code(run.folder, recipe),
        )
        for rank in range(settings.ranks)
    ]
    places = ["DEFAULT"] * settings.ranks if seats is None else seats
    wanted = models.wanted(run, recipe)
    return [
        part.options(**options, scheduling_strategy=place).remote(run.name, spec, recipe.logs, wanted)
        for spec, place in zip(specs, places, strict=True)
    ]
