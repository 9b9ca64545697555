"""The folder of a run with checkpoints of random tiny models, made without training."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from actors.config import EnvironmentSettings
from learner import checkpoint
from redraft import run as runs
from redraft.config import MakeSettings, ModelSettings
from redraft.models import make as models
from redraft.recipe import Recipe, build
from redraft.run import Run

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
RECIPE = {
    "name": "mine",
    "steps": 2,
    "model": {"make": {"tokenizer": "bytes", "max_length": 512}, "dtype": "float32"},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 2, "episodes": 2},
    "sampling": {"max_tokens": 8},
    "actors": {"engine": {"max_length": 128, "max_running": 2}},
}


def made_run(cache: Path, steps: tuple[int, ...] = (1, 2)) -> Run:
    """A run in ./runs whose checkpoints hold other weights each; its start model has a chat template, whose end token
    is not the tokenizer's eos."""
    recipe = build(RECIPE)
    base = _chat_model(cache, recipe)
    with runs.owned(recipe, None, resume=False, again=False) as owner:
        run = runs.create(recipe, str(base), owner)
    for step in steps:
        folder = checkpoint.begin(run.folder, step)
        shutil.copytree(base, folder / "model")
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(step)
            for weights in model.parameters():
                weights.add_(torch.randn(weights.shape, generator=generator) * 0.05)
        model.save_pretrained(folder / "model")
        (folder / "model" / "generation_config.json").unlink(missing_ok=True)
        checkpoint.finish(folder, checkpoint.RunState(run.id, step, 0, {}, 1, 0), keep=9)
    return run


def chat_tokenizer(template: str = CHATML):
    """A tokenizer of bytes with a chat template, whose end token is not the tokenizer's eos."""
    tokenizer = models.build_tokenizer("bytes", 512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def _chat_model(cache: Path, recipe: Recipe) -> Path:
    settings = ModelSettings(make=MakeSettings(tokenizer="bytes", max_length=512), dtype="float32")
    base = models.prepare(settings, EnvironmentSettings(name="signs"), cache, print)
    folder = cache / "chat"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), chat_tokenizer()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
