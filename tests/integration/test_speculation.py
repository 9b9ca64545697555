"""An engine that proposes what stood before draws from the model's own distribution, and says its log-probs."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from actors import engines
from actors.config import EngineSettings, EnvironmentSettings, SamplingSettings
from redraft.config import MakeSettings, ModelSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm

CLOSE = 1e-4
UNLIKELY = 5.0  # standard deviations
PROMPT = np.tile(np.random.default_rng(0).integers(3, 40, 12), 4).astype(np.int32)  # what it says was said before
RUN_ON = SamplingSettings(max_tokens=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    cache = tmp_path_factory.mktemp("models")
    made = [ModelSettings(make=MakeSettings(seed=seed, max_length=512), dtype="float32") for seed in (0, 1)]
    return [prepare(settings, EnvironmentSettings(name="signs"), cache, print) for settings in made]


@pytest.fixture(scope="module")
def running(models):
    """In a process of its own: what proposes brings numba, beside which no second engine starts in the same process."""
    settings = EngineSettings(process="separate", max_length=512, max_running=64, speculate="ngram")
    with asyncio.Runner() as runner:
        engine = runner.run(engines.start(models[0], "float32", settings, seed=0))
        yield engine, runner.run
        runner.run(engine.close())


class Exact:
    """Log-probs by transformers."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def of(self, ids: np.ndarray) -> np.ndarray:
        """float32[R, V], at each of the tokens behind the prompt."""
        logits = self._model(torch.tensor([*PROMPT.tolist(), *ids.tolist()])[None]).logits[0]
        return logits[len(PROMPT) - 1 : -1].log_softmax(-1).numpy()


def proposed(before: list[int]) -> int | None:
    """What followed the last two tokens where they stood before."""
    places = [n for n in range(len(before) - 2) if before[n : n + 2] == before[-2:]]
    return before[places[0] + 2] if places else None


def played(running, count: int) -> list:
    engine, run = running

    async def all_of_them():
        return await asyncio.gather(*(engine.generate(PROMPT, RUN_ON) for _ in range(count)))

    return run(all_of_them())


def check_distribution(running, model, count: int) -> int:
    """Three ways in which what was drawn could differ from the exact distribution, in standard deviations: its
    log-probs, the likeliest token, the one that was proposed. Returns how many tokens were proposed."""
    exact, sums, variances = Exact(model), np.zeros(3), np.zeros(3)
    guesses = taken = 0
    for made in played(running, count):
        logprobs_RV = exact.of(made.ids)
        said = list(PROMPT)
        for token, logprobs_V in zip(made.ids.tolist(), logprobs_RV.astype(np.float64), strict=True):
            shares_V = np.exp(logprobs_V)
            guess = proposed(said)
            marks = (logprobs_V, shares_V.argmax() == np.arange(len(shares_V)), np.arange(len(shares_V)) == guess)
            for n, mark_V in enumerate(marks):
                mean = shares_V @ mark_V
                sums[n] += mark_V[token] - mean
                variances[n] += shares_V @ np.square(mark_V, dtype=np.float64) - mean**2
            guesses += guess is not None
            taken += token == guess
            said.append(token)
    scores = sums / np.sqrt(variances)
    print(f"{count} responses, off by {np.round(scores, 2)} standard deviations; {taken} of {guesses} as proposed")
    assert np.abs(scores).max() < UNLIKELY
    return guesses


def test_log_probs_are_those_of_transformers(running, models):
    exact = Exact(models[0])
    for made in played(running, 16):
        assert len(made.ids) == len(made.logprobs)
        own = exact.of(made.ids)[np.arange(len(made.ids)), made.ids]
        assert np.abs(made.logprobs - own).max() < CLOSE


def test_tokens_are_drawn_from_the_models_own_distribution(running, models):
    assert check_distribution(running, models[0], 256) > 200, "proposals were tried"


@pytest.mark.prove
def test_a_million_tokens_are(running, models):
    for _ in range(60):
        check_distribution(running, models[0], 512)


def test_an_update_in_the_middle_of_a_response_is_told_and_obeyed(running, models):
    engine, run = running
    version = engine.version + 1

    async def spanning():
        generation = asyncio.ensure_future(engine.generate(PROMPT, SamplingSettings(max_tokens=400)))
        while not engine.running and not generation.done():
            await asyncio.sleep(0)
        await engine.load(models[1] / "model.safetensors", version)
        return await generation

    while len((made := run(spanning())).versions) < 2:  # the end token may come early
        version += 1
    (start, old), (switch, new) = made.versions
    assert (start, old, new) == (0, version - 1, version) and 0 < switch < len(made.ids) == len(made.logprobs)
    tokens = np.asarray(PROMPT)
    assert np.abs(run(engine.score(tokens)) - scored(models[1], tokens)).max() < CLOSE


def scored(folder, ids: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor(ids.tolist())[None]).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(-1, torch.tensor(ids[1:].tolist())[:, None])[:, 0].numpy()
