"""An actor whose engine does not follow the weights is found out by the probe, replaced, and its replacement plays."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from support.places import PYTHONPATH, RECIPES
from support.published import Published
from support.waiting import deadline_s, until

from actors.config import (
    ActorSettings,
    EngineSettings,
    EnvironmentSettings,
    MixedEnvironment,
    SamplingSettings,
)
from actors.contract import Orders, Report, Spec
from actors.rollout_config import AttemptSettings
from learner.model.load import load_model
from learner.weights.proof import Proof, perturbed
from protocols.errors import SettingError
from protocols.nvml import Gpu
from protocols.weights import TRIAL
from redraft import recipe as recipes
from redraft.config import MakeSettings, ModelSettings
from redraft.control import rank_gpus
from redraft.control import workers as parts
from redraft.control.fleet import Fleet
from redraft.control.rank_gpus import RankGpus
from redraft.launch import room
from redraft.models.make import prepare

pytestmark = pytest.mark.ray

HEAD = "model.embed_tokens.weight"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    environment = {"PYTHONPATH": os.pathsep.join((PYTHONPATH, str(Path(__file__).parent))), "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=2,
        resources={"actor": 1},
        include_dashboard=False,
        runtime_env={"env_vars": environment},
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    settings = ModelSettings(make=MakeSettings(seed=3), dtype="bfloat16")
    return prepare(settings, EnvironmentSettings(name="signs"), tmp_path_factory.mktemp("model"), print)


def published(model: Path, version: int) -> Published:
    """What a learner would publish in bfloat16: the model's weights, or perturbed ones for the trial."""
    import torch
    from safetensors.torch import load_file

    state = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(model / "model.safetensors").items()}
    tokens = tuple(np.random.default_rng(0).integers(0, 50, 32).tolist())
    proof = Proof(lambda state: load_model(str(model), torch.bfloat16, "eager", state), perturbed, tokens, 50)
    if version == TRIAL:
        state, probe = proof.trial(state, seed=0)
    else:
        probe = proof.probe_of(state)
    return Published(state, version, probe, node=ray.get_runtime_context().get_node_id())


def faulty_actor(marker: Path):
    """An actor class whose first process has an engine that keeps its old head and cannot be read back."""
    from actors.actor import Actor

    class KeepsOldHeadOnce(Actor):
        async def _build(self):
            made = await super()._build()
            if marker.exists():
                return made
            marker.touch()
            from safetensors.torch import load_file, save_file

            engine: Any = made.engine._engine
            old = load_file(Path(self._spec.model) / "model.safetensors")[HEAD]
            load = engine.load

            async def faulty_load(path, version):
                state = load_file(path)
                state[HEAD] = old.to(state[HEAD].dtype)
                save_file(state, marker.with_suffix(".safetensors"))
                await load(marker.with_suffix(".safetensors"), version)

            async def no_sums(unit):
                return None

            engine.load, engine.sums = faulty_load, no_sums
            return made

    return KeepsOldHeadOnce


def test_an_engine_that_keeps_its_old_head_is_replaced_and_the_replacement_is_verified(model, tmp_path):
    spec = Spec(
        run_id="test",
        model=str(model),
        dtype="bfloat16",
        seed=0,
        environments=(MixedEnvironment(name="signs"),),
        rollout=AttemptSettings(),
        sampling=SamplingSettings(),
        actors=ActorSettings(engine=EngineSettings(max_length=128, max_running=8)),
        keys=None,
    )
    node = ray.get_runtime_context().get_node_id()
    part = ray.remote(faulty_actor(tmp_path / "failed-once"))

    def make(name):
        return part.options(num_cpus=1, max_restarts=-1, max_concurrency=100).remote(spec, name, None, node)

    lost: list[str] = []
    first, trial = published(model, 0), published(model, TRIAL)
    fleet = Fleet(make, spec.actors, start_s=deadline_s(120), on_lost=lambda number, why: lost.append(why))
    orders = Orders(weights=first.ref, trial=trial.ref)

    def ready() -> bool:
        fleet.receive()
        for number in fleet.idle():
            fleet.send(number, orders)
        return bool(fleet.ready())

    until(ready, lambda: f"a verified actor; lost: {lost}", 180)
    print(f"lost: {lost}; probe of the replacement: {fleet.members[0].report.probe_difference:.4f}")
    assert len(lost) == 1 and "version -1" in lost[0] and "does not compute with these weights" in lost[0]
    assert fleet.members[0].report.version == 0
    fleet.close(5.0)


class Begins:
    """Can be constructed the second time."""

    def __init__(self, mark: Path):
        if not mark.exists():
            mark.touch()
            raise OSError(28, "No space left on device")

    def apply(self, func, **named):
        return func(self, **named)

    def ping(self):
        return "pong"

    def exchange(self, orders: Orders) -> Report:
        return Report("starting", pid=1)


def test_an_actor_that_cannot_be_constructed_is_made_anew_and_its_cause_told(tmp_path):
    part, lost = ray.remote(Begins).options(num_cpus=0, max_restarts=-1), []

    def heard() -> bool:
        fleet.hear()
        return any(member.report.pid for member in fleet.members.values())

    made, settings = part.remote, ActorSettings(count=1)
    fleet = Fleet(lambda name: made(tmp_path / "tried"), settings, deadline_s(60), lambda *what: lost.append(what))
    until(heard, lambda: f"an actor; lost: {lost}", 60)
    assert lost == [(0, "OSError: [Errno 28] No space left on device")]
    assert list(fleet.members) == [1] and fleet.target == 1


def test_an_owner_of_weight_files_that_cannot_be_constructed_is_made_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parts, "LOOK_S", 0.0)
    part, nodes = ray.remote(Begins).options(num_cpus=0, max_restarts=-1), {"node"}
    files: Any = parts.Files(SimpleNamespace(id="run"))  # pyright: ignore[reportArgumentType]
    files._start = lambda node: part.remote(tmp_path / "tried")
    fleet: Any = SimpleNamespace(nodes=lambda: nodes)
    files.look(fleet)
    first = files._owners["node"]
    until(lambda: files.look(fleet) or files._owners["node"] is not first, "another owner", 60)
    assert ray.get(files._owners["node"].ping.remote(), timeout=deadline_s(60)) == "pong"
    assert "No space left on device" in caplog.text


class Place:
    def taken(self) -> bool:
        return True


def test_who_needs_a_resource_of_ray_waits_until_a_node_has_it_free():
    place = ray.remote(Place).options(**parts.needs(ActorSettings(cpus=0, resources={"actor": 1})))
    first = place.remote()
    assert ray.get(first.taken.remote(), timeout=deadline_s(60))
    second = place.remote()  # not before: of two that are asked for at once, Ray may serve either first
    waiting = second.taken.remote()
    assert not ray.wait([waiting], timeout=0.5)[0]
    ray.kill(first)
    assert ray.get(waiting, timeout=deadline_s(60))
    ray.kill(second)


@pytest.mark.parametrize("setting", ["learner.gpus", "actors.gpus"])
def test_a_gpu_that_no_node_has_and_nothing_brings_is_refused_before_the_start(setting):
    assert not room.scaled(), "Ray was started here, so no autoscaler makes nodes"
    recipe = recipes.load(RECIPES / "quickstart.yaml", [f"{setting}=1000"])
    with pytest.raises(SettingError, match=f"{setting}: 1000 is asked for"):
        room.check(recipe, joined=True, join_s=0.1)


class GpuRank:
    """In the place of a learner's rank: says what it saw of its GPUs."""

    def __init__(self, number: int):
        self._seen = (Gpu("Card", 80 << 30, 1 << 30, 0.5, 300.0, number),)

    def gpus(self):
        return self._seen


def test_what_ranks_say_of_their_gpus_is_asked_for_and_a_rank_that_is_gone_says_nothing(monkeypatch):
    monkeypatch.setattr(rank_gpus, "EVERY_S", 0.0)
    ranks = [ray.remote(GpuRank).options(num_cpus=0).remote(number) for number in range(2)]
    asked = RankGpus(ranks)

    def seen() -> dict[str, list[int]]:
        asked.look()
        return {name: [gpu.number for gpu in gpus] for name, gpus in asked.newest.items()}

    until(lambda: seen() == {"learner-0": [0], "learner-1": [1]}, "both have told", 60)
    ray.kill(ranks[1])
    until(lambda: seen() == {"learner-0": [0]}, "only one tells", 60)
    ray.kill(ranks[0])
