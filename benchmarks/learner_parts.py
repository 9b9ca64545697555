"""The work of `benchmarks.learner`: groups with real-looking lengths, and processes that train on them or measure."""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from protocols.turns import Group, Role, Turn

VOCABULARY = 50
BIG_VOCABULARY, BIG_WIDTH = 150_000, 64
SCORED = 2048  # tokens whose log-probs are asked for where memory is measured


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the turns of one kind of task: `turns` of an episode, `episodes` of a group, and each prompt and
    response log-normal of that median and spread, cut at `longest`; `row_tokens` of the recipe that plays it."""

    turns: int
    episodes: int
    first_prompt: float
    prompt: float
    response: float
    spread: float
    longest: int
    row_tokens: int


KINDS = {
    "signs": Lengths(5, 1, 20, 10, 9, 0.1, 16, 256),
    "dialogues": Lengths(5, 1, 200, 60, 140, 0.8, 1500, 4096),
    "countdown": Lengths(3, 4, 90, 30, 120, 0.5, 256, 1024),
    "gsm8k": Lengths(1, 8, 110, 0, 180, 0.5, 1024, 1536),
    "math": Lengths(2, 4, 90, 40, 350, 0.6, 900, 2048),
    "agent": Lengths(12, 2, 300, 60, 25, 0.7, 400, 4096),
}


def groups_of(kind: Lengths, tokens: int, seed: int) -> list[Group]:
    """So many groups that they hold about `tokens` tokens."""
    random, made, held = np.random.default_rng(seed), [], 0
    for number in itertools.count():
        group = _group(kind, number, random)
        held += sum(len(turn.prompt) + len(turn.response) for turn in group.turns)
        if held > tokens and made:
            return made
        made.append(group)


def _group(kind: Lengths, number: int, random: np.random.Generator) -> Group:
    name, turns = number.to_bytes(16, "big"), []
    for episode, index in itertools.product(range(kind.episodes), range(kind.turns)):
        prompt = _some(kind.prompt if index else kind.first_prompt, kind, random)
        response = _some(kind.response, kind, random)
        logprobs = np.full(len(response), -np.log(VOCABULARY), np.float32)
        parent = len(turns) - 1 if index else -1
        facts = {"episode": episode, "index": index, "reward": float(random.random())}
        turns.append(Turn(name, 0, len(turns), parent, prompt, response, logprobs, ((0, 0),), Role.ATTEMPT, **facts))
    return Group(name, 0, tuple(turns))


def _some(median: float, kind: Lengths, random: np.random.Generator) -> np.ndarray:
    count = int(np.clip(random.lognormal(np.log(median), kind.spread), 1, kind.longest)) if median else 0
    return random.integers(0, VOCABULARY, count).astype(np.int32)


def padding(kind: Lengths, tokens: int, steps: int) -> float:
    """Share of forwarded tokens that are padding, over batches of that many tokens."""
    settings = LearnerSettings(row_tokens=kind.row_tokens, micro_tokens=kind.row_tokens * 4, credit={"name": "raw"})
    reports = [prepare(groups_of(kind, tokens, seed), 0, settings).report for seed in range(steps)]
    forwarded = sum(report.tokens for report in reports)
    return sum((report.padding_share or 0.0) * report.tokens for report in reports) / forwarded


# Sides of the race: a process each, that makes a step when it is told to.


@dataclass(frozen=True, slots=True)
class Side:
    """`zero` None is plain torch, of `ranks` threads; else `ranks` processes of one thread each."""

    zero: int | None
    ranks: int

    @property
    def name(self) -> str:
        return f"{'torch' if self.zero is None else f'zero{self.zero}'}_{self.ranks}"


@dataclass(frozen=True, slots=True)
class Job:
    """What all sides train: the model in a folder, on the batch of these groups."""

    model: str
    dtype: str
    device: str
    settings: LearnerSettings
    kind: Lengths
    tokens: int


def race(side: Side, rank: int, job: Job, port: int, pipe) -> None:
    """Sends the facts of the batch, then answers each number n with the seconds of n steps, until the pipe is closed; a
    traceback if it fails."""
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
        facts, step = _torch(job, side.ranks) if side.zero is None else _ours(side, rank, job, port)
        pipe.send(facts)
        while True:
            steps, began = pipe.recv(), time.monotonic()
            for _ in range(steps):
                step()
            pipe.send(time.monotonic() - began)
    except EOFError:
        return
    except Exception:
        pipe.send(traceback.format_exc())


def _ours(side: Side, rank: int, job: Job, port: int) -> tuple[dict, Callable[[], object]]:
    """The learner's engine: facts of the batch, and its step."""
    import torch

    from learner.ranks.trainer import Trainer, join_ranks

    torch.set_num_threads(1)
    settings = job.settings.model_copy(update={"zero": side.zero, "ranks": side.ranks})
    join_ranks(rank, side.ranks, ("127.0.0.1", port), job.device, timeout_s=120.0)
    engine = Trainer(settings, job.model, steps=1000, dtype=job.dtype, device=job.device)
    engine.examine(0)
    batch = prepare(groups_of(job.kind, job.tokens, 0), 0, settings)
    return batch.report.to_json() | {"pack_s": batch.pack_s}, lambda: engine.step(batch.micros[rank], 0)


def _torch(job: Job, threads: int) -> tuple[dict, Callable[[], object]]:
    """The same without anything of ours but the packed arrays: what a script of one page would do."""
    import torch

    from learner.model.attention import bounds
    from learner.model.load import load_model

    torch.set_num_threads(threads)
    model = load_model(job.model, getattr(torch, job.dtype), job.settings.attention).to(job.device).train()
    choice = job.settings.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=choice.lr, betas=choice.betas, weight_decay=0.0)
    batch = prepare(groups_of(job.kind, job.tokens, 0), 0, job.settings)
    names = ("tokens", "positions", "picks", "targets", "coefficients", "advantages", "sampler")
    arrays = [[torch.from_numpy(getattr(micro, name)) for name in names] for micro in batch.micros[0]]
    lower, higher = job.settings.objective.clips
    low, high = 1 - lower, 1 + higher

    def step() -> float:
        for micro in arrays:
            tokens, positions, picks, targets, shares, advantages, sampler = (array.to(job.device) for array in micro)
            hidden = model.get_decoder()(
                input_ids=tokens, position_ids=positions, attention_mask=None, use_cache=False, **bounds(positions)
            ).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[picks]).float()
            logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
            ratio = (logprobs - sampler).exp()
            (-(shares @ torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages))).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), choice.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)  # waits for the device

    return batch.report.to_json() | {"parameters": sum(each.numel() for each in model.parameters())}, step


# Memory of log-probs.


def logprob_memory(chunk: int, dtype: str, device: str, pipe) -> None:
    """Sends the most bytes that torch, and that the process, held in forward and backward of SCORED log-probs over
    BIG_VOCABULARY words beyond what was held before, weights and their gradients. On CUDA both are torch's."""
    try:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from learner.model.policy import Policy

        torch.set_num_threads(1)
        shape = {"hidden_size": BIG_WIDTH, "intermediate_size": BIG_WIDTH, "num_hidden_layers": 1}
        shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=BIG_VOCABULARY, **shape))
        policy = Policy(model.to(device, getattr(torch, dtype)))

        def once(count: int) -> None:
            places = torch.arange(count, device=device)
            logprobs, _ = policy(places[None], places[None], places, places, -(-count // chunk))
            logprobs.sum().backward()

        once(64)  # gradients are there, and all code is loaded
        pipe.send((_peak_on_gpu if device == "cuda" else _peak)(lambda: once(SCORED)))
    except Exception:
        pipe.send(traceback.format_exc())


def _peak_on_gpu(work) -> tuple[int, int]:
    import torch

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    used = torch.cuda.max_memory_allocated() - before
    return used, used


def _peak(work) -> tuple[int, int]:
    """By torch's own record of what it allocates, and by the kernel's of the process."""
    from torch.profiler import ProfilerActivity, profile

    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    used = _resident("VmHWM") - before
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held), used


def _resident(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
