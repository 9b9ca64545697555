"""The parts of a run as Ray actors: where each process runs, what it needs, and how it logs."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.actor import Actor, Spec
from actors.weights import NodeFiles
from learner.config import LearnerSettings
from learner.rank import Rank
from protocols import metrics
from redraft import logs
from redraft.recipe import Recipe
from redraft.run import Run
from replay.config import ClientKeys, Endpoints, ReplaySettings

log = logging.getLogger("redraft.parts")
CALLS = 8  # methods of one process that may run at once


def worker_environment(threads: int) -> dict:
    """Variables that a worker's libraries read when they are imported, and where it finds its modules."""
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        "env_vars": {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in (Path(__file__).parents[1], *paths)),
        }
    }


class ReplayPart:
    """The replay service in a process of its own. A restart binds the same endpoints and reads the same spool."""

    def __init__(self, run: Run, shard: int, endpoints: Endpoints, settings: ReplaySettings):
        from replay.service import Service

        logs.to_file(run.folder, run.name, f"replay-{shard}")
        self._service = Service(run.spool(shard), endpoints, settings, run.id, run.keys)
        self._service.start()
        self._port = metrics.serve(0, "replay")
        self._closing = False
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def metrics_port(self) -> int:
        return self._port

    def close(self) -> None:
        self._closing = True
        self._service.stop()

    def _watch(self) -> None:
        """When the service's thread fails, the process ends, so that Ray starts it again on the same spool."""
        try:
            self._service.join()
        except Exception:
            log.exception("the replay service failed; its process ends and is started again")
        if not self._closing:
            os._exit(1)


class ActorPart(Actor):
    """An actor that logs into the run folder."""

    def __init__(self, folder: str, run: str, spec: Spec, name: str):
        logs.to_file(Path(folder), run, name)
        super().__init__(spec, name, ray.get_actor(_files_name(spec.run_id, ray.get_runtime_context().get_node_id())))


class RankPart(Rank):
    """A learner rank that logs into the run folder."""

    def __init__(self, folder: str, run: str, rank: int, *arguments, **named):
        logs.to_file(Path(folder), run, f"learner-{rank}")
        super().__init__(rank, *arguments, **named)

    def address(self) -> tuple[str, int]:
        """This node and a free port, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]


def endpoints(nodes: int) -> Endpoints:
    """Where a shard of replay listens: files on a single node, free tcp ports of this node in a cluster."""
    if nodes == 1:
        folder = tempfile.mkdtemp(prefix="redraft-")  # private to the user; short, as ipc paths have to be
        return Endpoints(f"ipc://{folder}/ingest", f"ipc://{folder}/serve")
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
    """On the controller's own node, where the run folder is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_replay(run: Run, recipe: Recipe, shard: int, where: Endpoints):
    """A replay service beside the controller; Ray restarts it when it dies."""
    part = ray.remote(ReplayPart).options(
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=CALLS,
        scheduling_strategy=here(),
        runtime_env=worker_environment(1),
    )
    return part.remote(run, shard, where, recipe.replay)


def start_node_files(run: Run) -> list:
    """The owner of weight files on each node that is alive; actors find theirs by name."""
    part = ray.remote(NodeFiles)
    return [
        part.options(
            name=_files_name(run.id, node["NodeID"]),
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            runtime_env=worker_environment(1),
        ).remote(run.id)
        for node in ray.nodes()
        if node["Alive"]
    ]


def _files_name(run_id: str, node_id: str) -> str:
    return f"files-{run_id}-{node_id}"


def actor_maker(run: Run, recipe: Recipe, keys: ClientKeys | None, model: str = "", version: int | None = None):
    """A function that makes the actor of a name; with `version`, one that plays with `model` as it is."""
    spec = Spec(
        run_id=run.id,
        model=model or run.model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        data=recipe.data,
        environment=recipe.environment,
        rollout=recipe.rollout,
        sampling=recipe.sampling,
        actors=recipe.actors,
        keys=keys,
        version=version,
    )
    part = ray.remote(ActorPart)

    def make(name: str):
        return part.options(
            num_cpus=recipe.actors.cpus,
            num_gpus=recipe.actors.gpus,
            max_restarts=-1,
            max_concurrency=1000,
            runtime_env=worker_environment(recipe.actors.engine.threads),
        ).remote(str(run.folder), run.name, spec, name)

    return make


def start_ranks(run: Run, recipe: Recipe, shards: tuple[Endpoints, ...], keys: ClientKeys | None) -> list:
    """The learner's ranks."""
    settings: LearnerSettings = recipe.learner
    part = ray.remote(RankPart).options(
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        max_concurrency=CALLS,
        runtime_env=worker_environment(settings.threads),
    )
    return [
        part.remote(
            str(run.folder),
            run.name,
            rank,
            settings.ranks,
            settings,
            run.model,
            str(run.folder),
            run.id,
            recipe.seed,
            shards,
            keys,
            "cuda" if settings.gpus else "cpu",
            steps=recipe.steps,
            dtype=recipe.model.dtype,
            temperature=recipe.sampling.temperature,
        )
        for rank in range(settings.ranks)
    ]
