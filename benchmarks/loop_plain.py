"""The plain loop beside which runs are measured: one process, one model, plays a batch, learns from it, and again.

    python -m benchmarks.loop_plain JOB.json

Written for `signs` and the recipes quickstart and signs-grpo, of which it reads every setting: the same tasks in the
same order, the same dialogues, advantages, weights, optimizer and learning rate, with the model as transformers has it.
It leaves out what a system is for: nothing overlaps, nothing outlives the process, no second machine, no engine, no
replay, no checks. Since it learns from a batch before it plays the next one, every ratio of policies is 1.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from actors import environments
from actors.tasks import TaskOrder
from learner.credits.group import relative
from redraft.recipe import Recipe, load

TESTS, TIMES = 500, 4  # tasks of the exam, and how often each is played


@dataclass(frozen=True, slots=True)
class Batch:
    """B dialogues of T tokens, the shorter ones padded on the right."""

    ids_BT: Tensor  # int64
    answer_BT: Tensor  # int64: the answer, from 0, that the model's token belongs to or leads to; -1 for all others
    rewards_BA: np.ndarray  # of each answer


class Dialogues:
    """Dialogues of a batch that go on side by side, column of tokens by column, with one key-value cache.

    Rows are of different length, so columns hold holes: they are masked, and closed when the batch is done.
    """

    def __init__(self, model, tokenizer, temperature: float, max_tokens: int, rows: int):
        self._model, self._tokenizer, self._temperature, self._max = model, tokenizer, temperature, max_tokens
        self._cache = DynamicCache()
        empty_B0 = torch.empty(rows, 0, dtype=torch.long, device=model.device)
        self._ids_BC, self._answer_BC, self._real_BC = empty_B0, empty_B0, empty_B0
        self._ended_B = torch.ones(rows, dtype=torch.bool, device=model.device)
        self._logits_BV: Tensor | None = None

    def hear(self, texts: list[str]) -> None:
        """Each row reads its text, after the end token where the model's answer came to no end."""
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"] if any(texts) else [[]] * len(texts)
        end = self._tokenizer.eos_token_id
        rows = [ids if ended else [end, *ids] for ids, ended in zip(encoded, self._ended_B.tolist(), strict=True)]
        width = max(map(len, rows))
        if width:
            padded = [[-1] * (width - len(row)) + row for row in rows]
            ids_BW = torch.tensor(padded, device=self._model.device)
            self._read(ids_BW.clamp(min=0), ids_BW >= 0, -1)

    def say(self, answer: int, last: bool = False) -> list[str]:
        """What the model says in each row; after the `last` time nothing is to be read any more."""
        start, going_B = self._ids_BC.shape[1], torch.ones_like(self._ended_B)
        for place in range(self._max):
            chances_BV = torch.softmax(self._logits_BV / self._temperature, -1)
            ids_B = torch.multinomial(chances_BV, 1).squeeze(1)
            if last and place == self._max - 1:
                self._note(ids_B[:, None], going_B[:, None], answer)
            else:
                self._read(ids_B[:, None], going_B[:, None], answer)
            going_B = going_B & (ids_B != self._tokenizer.eos_token_id)
            if not going_B.any():
                break
        self._ended_B = ~going_B
        said = zip(self._ids_BC[:, start:].tolist(), self._real_BC[:, start:].tolist(), strict=True)
        rows = [[token for token, real in zip(*row, strict=True) if real] for row in said]
        return [text.removesuffix("\n") for text in self._tokenizer.batch_decode(rows)]

    def batch(self, rewards_BA: np.ndarray) -> Batch:
        """All that was said, without holes."""
        order_BC = (1 - self._real_BC).argsort(dim=1, stable=True)[:, : int(self._real_BC.sum(1).max())]
        real_BT = self._real_BC.gather(1, order_BC)
        answer_BT = self._answer_BC.gather(1, order_BC).masked_fill(real_BT == 0, -1)
        return Batch(self._ids_BC.gather(1, order_BC), answer_BT, rewards_BA)

    def _note(self, ids_BW: Tensor, real_BW: Tensor, answer: int) -> None:
        self._ids_BC = torch.cat([self._ids_BC, ids_BW], 1)
        self._real_BC = torch.cat([self._real_BC, real_BW.long()], 1)
        self._answer_BC = torch.cat([self._answer_BC, torch.full_like(ids_BW, answer)], 1)

    def _read(self, ids_BW: Tensor, real_BW: Tensor, answer: int) -> None:
        self._note(ids_BW, real_BW, answer)
        places_BW = (self._real_BC.cumsum(1) - 1).clamp(min=0)[:, -ids_BW.shape[1] :]
        logits_BV = self._model(
            input_ids=ids_BW,
            attention_mask=self._real_BC,
            position_ids=places_BW,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if self._logits_BV is not None:  # a row that read nothing goes on from what it read last
            logits_BV = torch.where(real_BW[:, -1:], logits_BV, self._logits_BV)
        self._logits_BV = logits_BV


@torch.no_grad()
def play(model, tokenizer, recipe: Recipe, tasks: list[dict], answers: int) -> Batch:
    """One dialogue a task, of so many answers, with reflections between where the recipe wants them."""
    made = [environments.make(recipe.environment) for _ in tasks]
    dialogues = Dialogues(model, tokenizer, recipe.sampling.temperature, recipe.sampling.max_tokens, len(tasks))
    heard = [one.reset(seed=0, options={"task": task})[0] for one, task in zip(made, tasks, strict=True)]
    rewards_AB = []
    for answer in range(answers):
        dialogues.hear(heard)
        if answer and recipe.rollout.reflect:
            dialogues.say(answer)
            dialogues.hear([""] * len(tasks))
        texts = dialogues.say(answer, last=answer + 1 == answers)
        steps = [one.step(text) for one, text in zip(made, texts, strict=True)]
        heard = [step[0] for step in steps]
        rewards_AB.append([step[1] for step in steps])
    return dialogues.batch(np.array(rewards_AB).T)


class Learner:
    """AdamW on the recipe's loss: advantage-weighted regression, or GRPO with a divergence from the start model."""

    def __init__(self, model, recipe: Recipe, reference=None):
        settings = recipe.learner.optimizer
        self._model, self._recipe, self._reference = model, recipe, reference
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def step(self, batch: Batch, number: int) -> None:
        settings, learner = self._recipe.learner.optimizer, self._recipe.learner
        for group in self._optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (number + 1) / max(1, settings.warmup_steps))
        share_BT, advantage_BT = self._shares(batch)
        rows = max(1, learner.micro_tokens // batch.ids_BT.shape[1])
        for micro in torch.arange(len(batch.ids_BT), device=batch.ids_BT.device).split(rows):
            self._loss(batch.ids_BT[micro], share_BT[micro], advantage_BT[micro]).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _shares(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """float32[B, T] each: every token's share of the loss, 0 where the model did not write it; its advantage."""
        objective, rewards_BA = self._recipe.learner.objective, batch.rewards_BA
        if objective.name == "awr":
            advantage_BA = rewards_BA - rewards_BA.mean(0)
            weight_BA = np.exp(np.minimum(advantage_BA / objective.temperature, np.log(objective.max_weight)))
        else:
            groups = rewards_BA.sum(1).reshape(-1, self._recipe.rollout.episodes)
            worth_B = np.concatenate([relative(group, self._recipe.learner.credit.std) for group in groups])
            advantage_BA = np.repeat(worth_B[:, None], rewards_BA.shape[1], 1)
            weight_BA = np.ones_like(rewards_BA)
        places_BT, own_BT = batch.answer_BT.clamp(min=0), batch.answer_BT >= 0
        columns = (
            torch.tensor(array, dtype=torch.float32, device=own_BT.device) for array in (weight_BA, advantage_BA)
        )
        weight_BT, advantage_BT = (column.gather(1, places_BT) * own_BT for column in columns)
        return weight_BT / weight_BT.sum(), advantage_BT

    def _loss(self, ids_BT: Tensor, share_BT: Tensor, advantage_BT: Tensor) -> Tensor:
        share_BT, advantage_BT = share_BT[:, 1:], advantage_BT[:, 1:]
        logprobs_BT, objective = _logprobs(self._model, ids_BT), self._recipe.learner.objective
        if objective.name == "awr":
            return -(share_BT * logprobs_BT).sum()
        with torch.no_grad():
            start_BT = _logprobs(self._reference, ids_BT)
        gain_BT = (logprobs_BT - logprobs_BT.detach()).exp() * advantage_BT
        divergence_BT = (start_BT - logprobs_BT).exp() - (start_BT - logprobs_BT) - 1
        return (share_BT * (objective.kl * divergence_BT - gain_BT)).sum()


def _logprobs(model, ids_BT: Tensor) -> Tensor:
    """float32[B, T - 1] of all tokens but the first. Padding on the right needs no mask: nothing looks ahead."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return torch.log_softmax(logits_BTV, -1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)


def train(model, reference, tokenizer, recipe: Recipe) -> dict:
    """Trains the model in place; returns the seconds of it all, and of its two halves."""
    order = TaskOrder(environments.tasks(recipe.environment, recipe.data, "train"), recipe.seed)
    learner, groups, episodes = Learner(model, recipe, reference), recipe.learner.batch_groups, recipe.rollout.episodes
    playing_s, began, cpu = 0.0, time.perf_counter(), time.process_time()
    for step in range(recipe.steps):
        chosen = [order.task(step * groups + place)[1] for place in range(groups)]
        start = time.perf_counter()
        batch = play(model, tokenizer, recipe, [task for task in chosen for _ in range(episodes)], recipe.rollout.turns)
        playing_s += time.perf_counter() - start
        learner.step(batch, step)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"wall_s": wall_s, "cpu_s": cpu_s, "playing_s": playing_s, "learning_s": wall_s - playing_s}


def exam(model, tokenizer, recipe: Recipe) -> list[float]:
    """The share of right answers by turn, on the first test tasks of every evaluation, each played so many times."""
    order = TaskOrder(environments.tasks(recipe.environment, recipe.data, "test"), 0)
    chosen = [order.task(place)[1] for place in range(TESTS)]
    answers = recipe.evaluation.turns or recipe.rollout.turns
    played = [play(model, tokenizer, recipe, chosen, answers).rewards_BA.mean(0) for _ in range(TIMES)]
    return np.mean(played, 0).round(4).tolist()


def main(job: dict) -> dict:
    """Trains as the job's recipe says, unless it has no steps; then tries the model on test tasks."""
    torch.set_num_threads(job["threads"])
    recipe = load(Path(job["recipe"]), job["changes"])

    def made():
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
        return model.to(job["device"])

    model, tokenizer = made(), AutoTokenizer.from_pretrained(job["model"])
    reference = made() if getattr(recipe.learner.objective, "kl", 0.0) else None
    result = {"start_s": time.time() - job["began"]}
    if recipe.steps:
        torch.manual_seed(recipe.seed)
        result |= train(model, reference, tokenizer, recipe)
    torch.manual_seed(recipe.seed)
    return result | {"accuracy": exam(model, tokenizer, recipe)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
