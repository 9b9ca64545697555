"""A standby: a process that has imported what an actor or a rank imports, and waits to become one.

Importing vLLM, or torch, transformers and DeepSpeed, is most of what a start costs on a CPU. Ray starts a standby ahead
of time, beside the parts of its kind, and takes it when the run next needs such a process on that node: in the place of
one that died, or because there are to be more. It is nobody until then, so it needs no room.

    a part works --nobody waits beside it--> Ray starts a process --imports--> idle --Ray needs one--> a part

The youngest part of a kind on a node looks for standbys, so no two do; where one has been taken, whoever took it is
the youngest. Ray offers neither step to its users yet, so what fails here is said, and the run goes on without: the
raylet's own PrestartWorkers, and the variable in which it keeps a job's worker_process_setup_hook.

Not where parts have GPUs: a library that looks for GPUs while it is imported, before Ray has said which are this
process's own, keeps to those that it saw.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
import time
from typing import Any, cast

import ray

from actors import engines
from actors.config import EngineSettings
from protocols import heap, process_folder, strict_json
from redraft import processes

log = logging.getLogger("redraft.standby")
VARIABLE = "REDRAFT_STANDBY"  # whose place it may take, and what it needs for that
HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
IDLE = "ray::IDLE"
RANK = ("torch", "transformers", "deepspeed", "learner.ranks.trainer", "learner.ranks.publisher", "learner.ranks.lead")
KEPT_S = 10 * 365 * 24 * 3600  # that Ray keeps a process which nobody needs: as long as the run's job
ANSWER_S = 10.0
COLD_S = 5.0  # a process that became a part sooner than this after its imports has waited for nothing

_ready = 0.0  # when this process had imported all, of time.monotonic


def variables(part: type, run_id: str, engine: EngineSettings | None = None) -> dict[str, str]:
    """What the environment of a part of this class says, so that processes of it import before they are given one: an
    actor what `engine` needs, a rank what ranks do."""
    needs = None if engine is None else engine.model_dump(mode="json")
    return {
        VARIABLE: strict_json.dumps({"part": part.__name__, "run": run_id, "engine": needs}),
        HOOK: f"{__name__}.prepare",
    }


def prepare() -> None:
    """Imports what this process will need. Ray runs it in each process of these variables, before it knows which part
    that will be; what fails is left to the part, which tells it."""
    global _ready
    asked = json.loads(os.environ[VARIABLE])
    try:
        with heap.lasting():
            if asked["engine"] is None:
                for name in RANK:
                    importlib.import_module(name)
            else:
                process_folder.temporary(asked["run"])
                engines.imported(EngineSettings.model_validate(asked["engine"]))
    except Exception:
        log.exception("what %s needs cannot be imported", asked["part"])
    _ready = time.monotonic()


def taken(name: str) -> None:
    """Says so where this process, which is that part now, was a standby."""
    waited_s = time.monotonic() - _ready
    if _ready and waited_s > COLD_S:
        log.info("%s was a standby, which has waited for %.0f s", name, waited_s)


def keep() -> None:
    """Has Ray start what is lacking beside this part, which works, in the background; of a part without these
    variables there are none."""
    if VARIABLE in os.environ:
        threading.Thread(target=_keep, name="standby", daemon=True).start()


def _keep() -> None:
    try:
        asked = json.loads(os.environ[VARIABLE])
        beside = {pid: processes.title(pid) for pid in _same()}
        parts = [pid for pid, title in beside.items() if title.startswith(f"ray::{asked['part']}")]
        if max(parts, key=lambda pid: (processes.began(pid), pid)) != os.getpid():
            return
        wanted = len(parts) if asked["engine"] is None else 1  # where one rank dies all are started anew
        lacking = wanted - sum(title.startswith(IDLE) for title in beside.values())
        if lacking > 0:
            _start(lacking)
            log.info("%d more of its kind are started on this node, to stand by", lacking)
    except Exception as error:  # of Ray's own, whatever it may be
        log.warning("no process stands by on this node: %s", error)


def _same() -> list[int]:
    """Processes that the same raylet has started for parts of this kind and run, this one among them."""
    value = os.environ[VARIABLE]
    return [pid for pid in processes.children(os.getppid()) if processes.variable(pid, VARIABLE) == value]


def _start(count: int) -> None:
    from ray._private import grpc_utils

    messages, services, environments, common = (
        cast(Any, importlib.import_module(f"ray.core.generated.{name}"))
        for name in ("node_manager_pb2", "node_manager_pb2_grpc", "runtime_environment_pb2", "common_pb2")
    )
    me = ray.get_runtime_context()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == me.get_node_id())
    host = node["NodeManagerAddress"]
    asked = messages.PrestartWorkersRequest(
        language=common.Language.PYTHON,
        job_id=bytes.fromhex(me.get_job_id()),
        runtime_env_info=environments.RuntimeEnvInfo(serialized_runtime_env=me.get_runtime_env_string()),
        keep_alive_duration_secs=KEPT_S,
        num_workers=count,
    )
    channel: Any = grpc_utils.init_grpc_channel(f"{f'[{host}]' if ':' in host else host}:{node['NodeManagerPort']}")
    with channel:
        services.NodeManagerServiceStub(channel).PrestartWorkers(asked, timeout=ANSWER_S)
