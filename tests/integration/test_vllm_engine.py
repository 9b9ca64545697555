"""vLLM computes with the weights it was given, says which ones, and an engine that does not is found out."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import REGISTRY
from support import card_house
from support.published import Published
from transformers import AutoConfig

from actors import engines, weights
from actors.config import EngineSettings, EnvironmentSettings, SamplingSettings
from actors.engines import vllm_common
from actors.engines.vllm_async import AsyncEngine
from actors.held import HeldEpisode
from protocols import cuda_ipc, metrics
from protocols.errors import WeightsError
from protocols.turns import Role, Stop
from protocols.weights import Probe
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm


class Kept:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.turns = []

    def turn(self, role, parent, prompt, completion, **facts) -> int:
        self.turns.append(SimpleNamespace(parent=parent, prompt=prompt, completion=completion))
        return len(self.turns) - 1


CLOSE = 1e-4
TOKENS = np.random.default_rng(0).integers(0, 40, 48).astype(np.int32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random models of one shape, float32 and with tied embeddings."""
    cache = tmp_path_factory.mktemp("models")
    made = [ModelSettings(make=MakeSettings(seed=seed, max_length=1024), dtype="float32") for seed in (0, 1)]
    return [prepare(settings, EnvironmentSettings(name="signs"), cache, print) for settings in made]


@pytest.fixture(scope="module", params=["in_process", "separate"])
def running(request, models, tmp_path_factory):
    """(engine, run): an engine that starts with the first model, and the loop that it lives on."""
    settings = EngineSettings(process=request.param, max_length=1024, max_running=16)
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        if shutil.which("cc"):
            card_house.use(card_house.built(tmp_path_factory.mktemp("driver")), patch)
        engine = runner.run(engines.start(models[0], "float32", settings, seed=0))
        yield engine, runner.run
        runner.run(engine.close())


def transformers_logprobs(folder, ids, temperature=1.0) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = (model(torch.tensor(ids.tolist())[None]).logits[0] / temperature).log_softmax(-1)
    return logprobs[:-1].gather(-1, torch.tensor(ids[1:].tolist())[:, None])[:, 0].numpy()


def probe_of(folder) -> Probe:
    return Probe(tuple(TOKENS.tolist()), tuple(transformers_logprobs(folder, TOKENS).tolist()), CLOSE)


def published(folder, version: int) -> Published:
    """The model in `folder` as the learner publishes it."""
    from safetensors.torch import load_file

    return Published(load_file(folder / "model.safetensors"), version, probe_of(folder))


def test_the_cache_on_a_cpu_is_as_large_as_the_recipe_says(models):
    """vLLM's own variable for it, which counts in whole GiB, would win over what the recipe says."""
    if vllm_common.on_gpu():
        pytest.skip("on a GPU the cache is what is left of engine.gpu_memory")

    async def blocks(settings: EngineSettings) -> int:
        engine = await engines.start(models[0], "float32", settings, seed=0)
        try:
            return engine._llm.vllm_config.cache_config.num_gpu_blocks
        finally:
            await engine.close()

    asked = dict(process="in_process", max_length=64, max_running=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        found = asyncio.run(blocks(EngineSettings(**asked)))
        large = asyncio.run(blocks(EngineSettings(**asked, kv_cache_gb=0.02)))
    assert found == 4 * 64 // 16 + 1, "room for each request of the largest length, and vLLM's own block"
    made = AutoConfig.from_pretrained(models[0])
    token = 2 * 4 * made.num_hidden_layers * made.num_key_value_heads * made.hidden_size // made.num_attention_heads
    assert large == int(0.02 * 2**30) // (16 * token)


def test_after_an_update_log_probs_are_those_of_transformers_with_the_new_weights(running, models):
    engine, run = running
    for version, folder in ((1, models[1]), (2, models[0]), (3, models[1])):
        run(engine.load(folder / "model.safetensors", version))
        difference = np.abs(run(engine.score(TOKENS)) - transformers_logprobs(folder, TOKENS)).max()
        print(f"version {version}: largest difference of log-probs from transformers {difference:.1e}")
        assert difference < CLOSE


def test_sampled_log_probs_are_those_of_transformers_also_for_a_prompt_that_an_older_version_cached(running, models):
    engine, run = running
    prompt = np.tile(TOKENS, 12)  # several blocks of the prefix cache
    for version, folder in ((4, models[0]), (5, models[1])):
        run(engine.load(folder / "model.safetensors", version))
        made = run(engine.generate(prompt, SamplingSettings(max_tokens=8)))
        whole = transformers_logprobs(folder, np.concatenate((prompt, made.ids)))
        assert np.abs(made.logprobs - whole[len(prompt) - 1 :]).max() < CLOSE
        assert made.versions == ((0, version),)


def test_log_probs_of_an_episode_that_was_told_experience_are_those_under_the_question_alone(running, models):
    engine, run = running
    run(engine.load(models[1] / "model.safetensors", 50))
    told, question, heard = TOKENS[:20], TOKENS[20:40], TOKENS[40:]
    held = HeldEpisode(writer := Kept())

    async def episode():
        prompt, parent = np.concatenate((told, question)), -1
        for index, new in enumerate((question, heard)):
            made = await engine.generate(prompt, SamplingSettings(max_tokens=8))
            facts = {"episode": 0, "index": index, "reward": 0.0, "extra": {}}
            parent = held.turn(Role.ACTION, parent, new, made, **facts)
            prompt = np.concatenate((prompt, made.ids, heard))
        assert await held.rescore(weights.Proved(engine).scored)

    run(episode())
    held.write()
    first, second = (turn.completion for turn in writer.turns)
    ids = np.concatenate((question, first.ids, heard, second.ids))
    whole = transformers_logprobs(models[1], ids)
    end = len(question) + len(first.ids)
    found = np.concatenate((first.logprobs, second.logprobs))
    wanted = np.concatenate((whole[len(question) - 1 : end - 1], whole[end + len(heard) - 1 :]))
    assert np.abs(found - wanted).max() < 1e-5
    assert first.versions == second.versions == ((0, 50),)


def test_log_probs_are_those_of_the_temperature_that_sampled(running, models):
    engine, run = running
    run(engine.load(models[0] / "model.safetensors", 6))
    made = run(engine.generate(TOKENS, SamplingSettings(max_tokens=8, temperature=0.5)))
    whole = transformers_logprobs(models[0], np.concatenate((TOKENS, made.ids)), temperature=0.5)
    assert np.abs(made.logprobs - whole[len(TOKENS) - 1 :]).max() < CLOSE


def test_a_generation_that_spans_an_update_reports_both_versions(running, models):
    engine, run = running

    async def spanning():
        run_on = SamplingSettings(max_tokens=700)
        before = engine.version
        for _ in range(20):  # the end token may come early
            generation = asyncio.ensure_future(engine.generate(TOKENS, run_on))
            while not engine.running and not generation.done():
                await asyncio.sleep(0)
            await engine.load(models[0] / "model.safetensors", before + 1)
            made = await generation
            before += 1
            if len(made.versions) == 2:
                return before, made
        return before, made

    version, made = run(spanning())
    (start, old), (switch, new) = made.versions
    assert (start, old, new) == (0, version - 1, version) and 0 < switch < len(made.ids)
    assert len(made.logprobs) == len(made.ids)


def test_what_was_published_is_accepted_and_what_was_damaged_is_refused(running, models, tmp_path):
    engine, run = running
    made = published(models[1], 100)
    difference = run(weights.apply(engine, made.ref, made.path, CLOSE))
    assert difference < CLOSE and engine.version == 100
    damaged, data = tmp_path / "damaged.safetensors", made.bytes()
    data[-100] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(WeightsError, match="digest"):
        run(weights.apply(engine, made.ref, damaged, CLOSE))
    assert engine.version == 100, "damaged bytes never reach the engine"


def test_requests_beyond_the_batch_are_told_how_long_they_queued(running):
    engine, run = running
    prompts = np.random.default_rng(1).integers(0, 40, (48, 16)).astype(np.int32)

    async def three_batches():
        return await asyncio.gather(*(engine.generate(ids, SamplingSettings(max_tokens=32)) for ids in prompts))

    made = run(three_batches())
    generated = np.median([each.seconds - each.queued_s for each in made])
    queued = sorted(each.queued_s for each in made)
    print(f"generating {generated:.3f} s; queued at once {queued[0]:.3f}, in the middle {queued[24]:.3f} s")
    assert all(0 <= each.queued_s <= each.seconds for each in made)
    assert sum(each > generated / 2 for each in queued) >= 16 and queued[0] < generated / 2


def test_a_prompt_that_was_seen_is_found_in_the_prefix_cache_and_counted(running):
    engine, run = running
    prompt = np.random.default_rng(2).integers(0, 40, 90).astype(np.int32)
    counts = []
    for _ in range(2):
        run(engine.generate(prompt, SamplingSettings(max_tokens=2)))
        found = [REGISTRY.get_sample_value(metric.name) for metric in (metrics.PREFIX_QUERIES, metrics.PREFIX_HITS)]
        counts.append(np.array(found))
    queries, hits = counts[1] - counts[0]
    assert queries == 90 and 80 <= hits < 90  # whole blocks of 16


class KeepsOldHead:
    """A faulty engine: it loads everything but the (tied) head, and cannot be read back."""

    def __init__(self, engine, old, folder):
        self._engine, self._old, self._folder = engine, old, folder

    async def load(self, path, version):
        from safetensors.torch import load_file, save_file

        kept = "model.embed_tokens.weight"
        mixed = self._folder / "mixed.safetensors"
        save_file(load_file(path) | {kept: load_file(self._old)[kept]}, mixed)
        await self._engine.load(mixed, version)

    async def sums(self, unit):
        return None

    async def score(self, ids):
        return await self._engine.score(ids)


def test_an_engine_that_keeps_its_old_head_fails_the_probe(running, models, tmp_path):
    engine, run = running
    faulty = KeepsOldHead(engine, models[0] / "model.safetensors", tmp_path)
    made = published(models[1], 101)
    with pytest.raises(WeightsError, match="does not compute with these weights"):
        run(weights.apply(faulty, made.ref, made.path, CLOSE))


def test_an_engine_that_keeps_its_old_head_fails_the_read_back(running, models, tmp_path):
    engine, run = running
    faulty = KeepsOldHead(engine, models[0] / "model.safetensors", tmp_path)
    faulty.sums = engine.sums
    made = published(models[1], 102)
    with pytest.raises(WeightsError, match="live parameters"):
        run(weights.apply(faulty, made.ref, made.path, CLOSE))


@pytest.fixture(scope="module")
def adapters(models):
    """Two published adapters of the first model."""
    import torch

    from learner.lora_config import LoraSettings
    from learner.model.lora import Adapter

    made, ids = [], torch.tensor(TOKENS.tolist())[None]
    for seed in (0, 1):
        adapter = Adapter(LoraSettings(rank=4), str(models[0]), seed)
        model = adapter.merged({}, torch.float32)
        adapter.add(model)
        state = adapter.perturbed({name: part.detach() for name, part in adapter.trained(model).items()}, 0.3, seed)
        with torch.no_grad():
            logprobs = adapter.merged(state, torch.float32)(ids).logits[0, :-1].log_softmax(-1)
        probe = Probe(tuple(TOKENS.tolist()), tuple(logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()), CLOSE)
        made.append(Published(state, 200 + seed, probe, adapter))
    return made


def test_adapters_are_merged_into_the_start_model_however_often_they_change(running, models, adapters):
    engine, run = running
    for made in (*adapters, adapters[0]):
        difference = run(weights.apply(engine, made.ref, made.path, CLOSE))
        print(f"an adapter of {made.ref.size_bytes} bytes: difference from transformers {difference:.1e}")
    whole = published(models[0], 203)
    assert run(weights.apply(engine, whole.ref, whole.path, CLOSE)) < CLOSE


class Deaf:
    """A faulty engine: it loads nothing, and cannot be read back."""

    def __init__(self, engine):
        self._engine = engine

    async def load(self, path, version):
        pass

    async def sums(self, unit):
        return None

    async def score(self, ids):
        return await self._engine.score(ids)


@pytest.mark.parametrize("before", ["the start model", "another adapter"])
def test_an_engine_that_does_not_apply_an_adapter_fails_the_probe(running, models, adapters, before):
    engine, run = running
    run(engine.load(models[0] / "model.safetensors" if before == "the start model" else adapters[1].path, 204))
    made = adapters[0]
    with pytest.raises(WeightsError, match="does not compute with these weights"):
        run(weights.apply(Deaf(engine), made.ref, made.path, CLOSE))


def test_parameters_that_are_not_the_start_model_s_beside_an_adapter_fail_the_read_back(running, models, adapters):
    engine, run = running
    run(engine.load(models[1] / "model.safetensors", 205))  # all its weights, of which the adapter changes a part
    with pytest.raises(WeightsError, match="live parameters"):
        run(weights.apply(engine, adapters[0].ref, adapters[0].path, CLOSE))


def test_a_prompt_that_leaves_no_room_is_refused_by_the_names_of_the_settings(running):
    engine, run = running
    with pytest.raises(engines.PromptTooLong, match=r"actors\.engine\.max_length"):
        run(engine.generate(np.zeros(1020, np.int32), SamplingSettings(max_tokens=9)))


def test_abort_ends_what_is_under_way(running):
    engine, run = running

    async def aborted():
        generations = [
            asyncio.ensure_future(engine.generate(TOKENS, SamplingSettings(max_tokens=900))) for _ in range(8)
        ]
        while engine.running < 8 and not any(generation.done() for generation in generations):
            await asyncio.sleep(0)
        await engine.abort()
        return await asyncio.gather(*generations)

    stops = {made.stop for made in run(aborted())}
    assert stops <= {Stop.ABORTED, Stop.END} and Stop.ABORTED in stops
    assert engine.running == 0


def test_an_engine_that_slept_generates_as_before_and_what_was_asked_meanwhile_waited(running, models, monkeypatch):
    engine, run = running
    if not isinstance(engine, AsyncEngine):
        pytest.skip("one in this process never sleeps")
    run(engine.load(models[0] / "model.safetensors", 200))
    given: list[int] = []

    async def release():  # the one thing that a CPU cannot do
        given.append(engine.running)

    async def nap():
        cut = asyncio.ensure_future(engine.generate(TOKENS, SamplingSettings(max_tokens=900)))
        while not engine.running:
            await asyncio.sleep(0)
        await engine.sleep()
        meanwhile = asyncio.ensure_future(engine.generate(TOKENS, greedy))
        await asyncio.wait([meanwhile], timeout=0.2)
        waited = not meanwhile.done()
        await engine.wake()
        return await cut, waited, await meanwhile

    greedy = SamplingSettings(max_tokens=8, temperature=0.0)
    before = run(engine.generate(TOKENS, greedy))
    monkeypatch.setattr(engine._llm, "release_kv_cache_memory", release)
    cut, waited, after = run(nap())
    assert cut.stop in (Stop.ABORTED, Stop.END) and len(given) == 1 and waited
    assert after.ids.tolist() == before.ids.tolist()


@pytest.mark.compiler
def test_weights_on_a_gpu_that_learner_and_engine_share_are_mapped_and_proved_while_it_generates(running, models):
    engine, run = running
    learner = card_house.Learner(Path(cuda_ipc.LIBRARY))
    transports, proved = card_house.transports(), weights.Proved(engine)

    async def take(ref):
        playing = asyncio.ensure_future(proved.generate(TOKENS, SamplingSettings(max_tokens=400)))
        async with transports.fetched(ref, proved, 60.0) as path:
            difference = await proved.apply(ref, path, CLOSE)
        await playing
        return path, difference

    learner.write(models[0] / "model.safetensors")
    for folder in (models[1], models[0]):
        ref = learner.write(folder / "model.safetensors", probe_of(folder))
        path, difference = run(take(ref))
        assert ref.handle and path is None and transports.last == "shared"
        assert difference < CLOSE and engine.version == ref.version
    learner.close()
