"""Teaches a made model the form of an environment's dialogues, by supervised training on its demonstrations.

What it learns is how to answer, how to reflect and how to carry a reflection out, not which reflection helps: that is
left to reinforcement learning. Dialogues are made on the fly, so that none is seen twice but by chance. The loss is on
every token, the environment's too: a model that has learned to foresee what the environment says to an answer reads it
better afterwards (without that, training on `signs` sharpened first answers and fixed hardly any).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from actors import environments
from actors.config import EnvironmentSettings
from actors.environments.base import Demonstrates
from protocols.errors import SettingError
from redraft import machine
from redraft.config import PretrainSettings
from redraft.models.muon import Muon
from redraft.models.threads import Threads, up_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINAL_SHARE = 0.1  # of the learning rate, at the last step
CLIP = 1.0
REPORT_EVERY = 50


def pretrain(
    model: PreTrainedModel,
    tokenizer,
    settings: PretrainSettings,
    environment: EnvironmentSettings,
    seed: int,
    progress: Callable[[str], None],
) -> float:
    """Trains `model` in place; returns the last loss, in nats a token. Raises SettingError without demonstrations."""
    source = environments.make(environment)
    if not hasattr(source, "demonstrations"):
        cure = "Leave pretrain out, or name an environment that has a `demonstrations` method, such as signs"
        raise SettingError("model.make.pretrain", f"{environment.name} has no demonstrations", cure)
    source = cast(Demonstrates, source)
    longest = max(turns for turns, _, _ in settings.batch)
    _check_length(source, tokenizer, longest, model.config.max_position_embeddings)
    before = torch.get_num_threads()
    try:
        return _train(model, tokenizer, settings, source, seed, progress)
    finally:
        torch.set_num_threads(before)


def _train(model, tokenizer, settings: PretrainSettings, source: Demonstrates, seed: int, progress) -> float:
    rng = np.random.Generator(np.random.Philox(seed))
    shares = np.array([share for _, _, share in settings.batch])
    device = device_of_training()
    model.to(device).train()
    optimizers = _optimizers(model, settings)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, _schedule(settings)) for o in optimizers]
    threads = Threads([settings.threads] if settings.threads else up_to(machine.cores()))
    begun, tokens, loss = time.monotonic(), 0, torch.tensor(torch.nan)
    for step in range(1, settings.steps + 1):
        turns, count, _ = settings.batch[rng.choice(len(shares), p=shares / shares.sum())]
        ids_BT = collate(source.demonstrations(rng, count, turns), tokenizer)
        tokens += int((ids_BT != tokenizer.pad_token_id).sum())
        with threads.step(ids_BT.numel()):
            loss = _step(model, ids_BT.to(device), tokenizer.pad_token_id, optimizers)
        for schedule in schedules:
            schedule.step()
        if step % REPORT_EVERY == 0 or step == settings.steps:
            seconds = time.monotonic() - begun
            progress(f"pretrain {step}/{settings.steps}: loss {loss.item():.3f}, {tokens:,} tokens, {seconds:.0f} s")
    model.to("cpu").eval()
    return loss.item()


def device_of_training() -> str:
    """A GPU, where torch has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _step(model, ids_BT: torch.Tensor, pad: int, optimizers) -> torch.Tensor:
    device = ids_BT.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or machine.multiplies_bfloat16()):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    # Right padding needs no attention mask: causal attention never looks at what follows.
    loss = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), ignore_index=pad
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _optimizers(model: torch.nn.Module, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the embeddings, AdamW for all else."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        Muon(matrices, lr=settings.hidden_lr),
        torch.optim.AdamW(others, lr=settings.other_lr, weight_decay=0.0),
    ]


def _schedule(settings: PretrainSettings) -> Callable[[int], float]:
    def factor(done: int) -> float:
        if done < settings.warmup:
            return (done + 1) / settings.warmup
        fall = (done - settings.warmup) / max(1, settings.steps - settings.warmup)
        return 1 - (1 - FINAL_SHARE) * min(1.0, fall)

    return factor


def collate(dialogues: list[list[tuple[str, bool]]], tokenizer) -> torch.Tensor:
    """int64 ids [B, T], padded on the right.

    Each piece is tokenised by itself, as it is while playing; the model's own ones get their end token here.
    """
    texts = [text for dialogue in dialogues for text, _ in dialogue]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    rows = [
        [token for _, own in dialogue for token in next(encoded) + [tokenizer.eos_token_id] * own]
        for dialogue in dialogues
    ]
    width = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])


def _check_length(source: Demonstrates, tokenizer, turns: int, longest: int) -> None:
    sample = collate(source.demonstrations(np.random.default_rng(0), 256, turns), tokenizer)
    if sample.shape[1] > longest:
        problem = f"{longest} tokens are too few for dialogues of {turns} turns ({sample.shape[1]})"
        raise SettingError("model.make.max_length", problem, "Raise it, or pretrain on fewer turns")
