"""The benchmark of the loop measures what it says: the plain loop reads and scores rightly, clocks begin and end."""

from __future__ import annotations

import pytest

from actors import environments
from benchmarks.loop_parts import SlowSigns, Watch, began_s
from redraft.models import make as models
from redraft.recipe import Recipe, build

RECIPE = {
    "name": "tiny",
    "steps": 1,
    "model": {"dtype": "float32", "make": {"hidden": 32, "layers": 2, "heads": 1, "feed_forward": 32}},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 3, "reflect": True},
    "sampling": {"temperature": 0.01, "max_tokens": 5},
    "actors": {"engine": {"max_length": 128}},
    "learner": {"credit": {"name": "turnwise", "baseline": "batch"}, "objective": {"name": "awr"}},
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return build(RECIPE)


def test_what_the_plain_loop_plays_with_its_cache_is_what_the_model_says_to_the_whole_dialogue(recipe, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.loop_plain import play

    folder = models.prepare(recipe.model, recipe.environment, tmp_path, lambda line: None)
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # far from uniform, and ending some answers early
        model.model.embed_tokens.weight.mul_(20)
    batch = play(model, tokenizer, recipe, list(environments.tasks(recipe.environment, recipe.data, "train")[:32]), 3)
    with torch.no_grad():
        likeliest = model(input_ids=batch.ids_BT[:, :-1]).logits.argmax(-1)
    own = batch.answer_BT[:, 1:] >= 0
    assert own.any() and (likeliest == batch.ids_BT[:, 1:])[own].all()
    assert {int(answer) for answer in batch.answer_BT.unique()} == {-1, 0, 1, 2} and batch.rewards_BA.shape == (32, 3)


def test_a_run_is_timed_from_the_first_wait_for_groups():
    step = {"time_s": 30.0, "seconds": {"wait": 4.0, "pack": 0.5, "train": 1.0, "gather": 0.25, "publish": 0.75}}
    assert began_s(step) == 24.0


def test_cpu_time_is_that_of_the_stretch_before_the_last_line(tmp_path):
    watch = Watch(tmp_path / "metrics.jsonl")
    watch._seen = [(0.0, 10.0, 0), (2.0, 11.0, 0), (4.0, 15.0, 1), (6.0, 18.0, 2), (8.0, 99.0, 2)]
    assert watch.cpu_s(wall_s=3.0) == 18.0 - 13.0


def test_a_slow_environment_takes_half_its_mean_or_more(monkeypatch):
    waits = []
    monkeypatch.setattr("benchmarks.loop_parts.time.sleep", waits.append)
    environment = SlowSigns(mean_s=0.5)
    task = SlowSigns.tasks(build(RECIPE).data, "train")[0]
    environment.reset(seed=0, options={"task": task})
    for _ in range(4000):
        environment.step("1+1")
    assert min(waits) >= 0.25 and sum(waits) / len(waits) == pytest.approx(0.5, rel=0.1)
