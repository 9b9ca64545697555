"""Engines on other nodes get versions by broadcast, proved; one that is killed meanwhile costs the others none."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from support.broadcast_house import Learner, Played
from support.places import PYTHONPATH
from support.waiting import deadline_s

from benchmarks.weights_parts import Spec
from redraft.config import MakeSettings, ModelSettings
from redraft.control.client import actor_name  # noqa: F401  sets what Ray reads when it is imported

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


@pytest.mark.prove
def test_a_version_reaches_the_others_when_an_engine_is_killed_amid_its_broadcast_and_later_ones_a_new_one(
    tmp_path, monkeypatch
):
    import ray

    from actors.config import EnvironmentSettings
    from actors.transports import NodeFiles
    from redraft.control.workers import worker_environment
    from redraft.models.make import prepare

    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    made = ModelSettings(make=MakeSettings(max_length=512), dtype="float32")
    folder = prepare(made, EnvironmentSettings(name="signs"), tmp_path, print)
    spec = Spec(str(folder), "float32", actors=2, generations=2)

    def got(*references):
        return ray.get(list(references), timeout=deadline_s(60.0))

    ray.init(address="local", num_cpus=1, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    try:
        options = {"num_cpus": 0, "max_concurrency": 100, "runtime_env": worker_environment(1)}
        files = ray.remote(NodeFiles).options(num_cpus=0).remote("broadcast")
        learner = ray.remote(Learner).options(**options).remote(spec)
        one, victim, joining = (
            ray.remote(Played).options(**options).remote(spec, number, files) for number in range(3)
        )
        got(*(each.start.remote() for each in (one, victim, joining)))

        (first,) = got(learner.next.remote())
        assert got(one.taken.remote(first), victim.taken.remote(first)) == ["collective"] * 2

        got(learner.halt.remote())
        (second,) = got(learner.next.remote())
        pending, lost = one.taken.remote(second), victim.taken.remote(second)
        assert got(learner.halted.remote()) == [True]
        (pid,) = got(victim.pid.remote())
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=deadline_s(10.0))
        got(learner.go.remote())
        assert got(pending)[0] in ("collective", "object_store"), "proved, however it came"
        with pytest.raises(ray.exceptions.RayActorError):
            got(lost)

        (third,) = got(learner.next.remote())
        assert got(one.taken.remote(third)) == ["collective"]
        (fourth,) = got(learner.next.remote())
        both = got(one.taken.remote(fourth), joining.taken.remote(fourth))
        assert both[0] == "collective" and both[1] in ("collective", "object_store"), "it may ask too late for this one"
        (fifth,) = got(learner.next.remote())
        assert got(one.taken.remote(fifth), joining.taken.remote(fifth)) == ["collective"] * 2
    finally:
        ray.shutdown()
