"""A real pretrained model: its engines follow the weights, and those that do not are found out."""

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.published import Published
from support.run_house import Command
from support.smollm2 import smollm2

from actors import engines, weights
from actors.config import EngineSettings
from learner.weights.proof import ENOUGH, LIMIT, Proof, perturbed
from learner.weights.publish import probe_tokens
from protocols.errors import WeightsError
from protocols.weights import TRIAL

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.real_model]

SEEDS = (0, 1, 2)
NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm")


@pytest.fixture(scope="module")
def model() -> Path:
    return smollm2()


@pytest.fixture(scope="module")
def running(model):
    """(engine, run): vLLM in bfloat16, and the loop that it lives on."""
    settings = EngineSettings(max_length=64, max_running=4, kv_cache_gb=0.1)
    with asyncio.Runner() as runner:
        engine = runner.run(engines.start(model, "bfloat16", settings, seed=0))
        yield engine, runner.run
        runner.run(engine.close())


class Learned:
    """What a learner in bfloat16 publishes with the probe of `seed`: its weights, and the trial."""

    def __init__(self, model: Path, seed: int):
        import torch
        from safetensors.torch import load_file

        from learner.model.load import load_model

        self.before = load_file(model / "model.safetensors")
        vocabulary = self.before["model.embed_tokens.weight"].shape[0]
        load = partial(load_model, str(model), torch.bfloat16, "sdpa")
        proof = Proof(load, perturbed, probe_tokens(32, vocabulary, seed), vocabulary)
        self.after, probe = proof.trial(self.before, seed)
        self.change = np.abs(np.array(proof.probe_of(self.before).logprobs) - np.array(probe.logprobs))
        self.trial = Published(self.after, TRIAL, probe)
        self.first = Published(self.before, 0, proof.probe_of(self.before))


class Keeps:
    """A faulty engine: what `old` names it does not load, and it cannot be read back."""

    def __init__(self, engine, published: Learned, old: tuple[str, ...], folder: Path):
        self._engine, self._published, self._old, self._folder = engine, published, old, folder

    async def load(self, path, version):
        from safetensors.torch import load_file, save_file

        kept = {name: part for name, part in self._published.before.items() if any(old in name for old in self._old)}
        assert kept
        mixed = self._folder / "mixed.safetensors"
        save_file(load_file(path) | kept, mixed)
        await self._engine.load(mixed, version)
        mixed.unlink()

    async def sums(self, unit):
        return None

    async def score(self, ids):
        return await self._engine.score(ids)


@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.prove) for seed in SEEDS[1:])])
def test_an_engine_proves_the_weights_of_a_real_model_and_one_that_keeps_its_head_or_norms_fails_the_trial(
    running, model, tmp_path, seed
):
    engine, run = running
    published = Learned(model, seed)
    shares = []
    for made in (published.trial, published.first):
        limit = made.ref.probe.limit
        shares.append(run(weights.apply(engine, made.ref, made.path, limit)) / limit)
    ref, path = published.trial.ref, published.trial.path
    print(f"differences in limits {np.round(shares, 2)}; the trial changes by {published.change.mean():.2f}")
    assert np.median(published.change) > 0.9 * ENOUGH / LIMIT * ref.probe.limit
    for old in (("embed_tokens",), NORMS, ("",)):
        with pytest.raises(WeightsError, match="version -1: .*it does not compute with these weights") as refused:
            run(weights.apply(Keeps(engine, published, old, tmp_path), ref, path, ref.probe.limit))
        print(refused.value)


RECIPE = {
    "name": "real",
    "steps": 2,
    "environment": {"name": "signs", "feedback": "residual"},
    "sampling": {"max_tokens": 12},
    "actors": {"count": 1, "groups": 8, "engine": {"max_running": 16, "max_length": 512, "kv_cache_gb": 0.2}},
    "replay": {"drop_flat": False},
    "learner": {
        "batch_groups": 2,
        "max_staleness": 0,  # so that trainer and sampler hold the same weights
        "row_tokens": 512,
        "micro_tokens": 1024,
        "credit": {"name": "raw"},
        "objective": {"name": "awr"},
        "optimizer": {"lr": 1e-6},
    },
    "evaluation": {"n": 1, "independent": 1, "greedy": False},
}
ROLLOUTS = {
    "attempt": {"name": "attempt", "episodes": 4},
    "retry": {"name": "retry", "turns": 2, "episodes": 2},
    "reflect": {"name": "reflect", "episodes": 2},
}


@pytest.mark.prove
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_real_model_is_trained_and_sampler_and_trainer_differ_by_no_more_than_its_noise(
    model, tmp_path, dtype, rollout
):
    """No tolerance is set. Two computations of one noise differ by sqrt(2) times it; the mean over tokens is larger
    than the median, of bell-shaped errors 1.2 times, of these, which have long tails, about 1.5 times."""
    recipe = RECIPE | {"rollout": ROLLOUTS[rollout], "model": {"path": str(model), "dtype": dtype}}
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(recipe))
    run = Command(tmp_path, "train", "real.yaml")
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    steps = run.lines("real", "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2] and all(step["trained_tokens"] for step in steps)
    for step in steps:
        print(f"{dtype}, {rollout}: mismatch {step['mismatch_mean']:.2g}, noise {step['probe_noise']:.2g}")
        assert step["mismatch_mean"] < 2.1 * step["probe_noise"]
    log = (tmp_path / "runs" / "real" / "logs" / "learner-0.log").read_text()
    assert log.count("proof of weights: noise") == 1 and "MA " not in log
