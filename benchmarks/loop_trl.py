"""TRL's GRPOTrainer on the same work, in its own environment: one answer a sample, or dialogues with a slow environment.

    .cache/bench-trl/bin/python -m benchmarks.loop_trl JOB.json

Every setting comes from the recipe: the same prompts in the same order, rewards, advantages, loss, optimizer and batch.
A batch is one forward pass, without gradient checkpointing, in float32. Generation is that of transformers, TRL's default
and faster than vLLM beside it on a CPU.

Dialogues are played by a `rollout_func`. It is called with a whole batch and has to return it whole, so that every turn of
the batch waits for its slowest environment; these all run at once, in threads. With `tools` TRL plays dialogues itself,
by its `environment_factory`: then it waits for the environments of a batch one after the other.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from actors import environments
from actors.tasks import TaskOrder
from redraft.recipe import Recipe, load


class Clock(TrainerCallback):
    """Wall and CPU seconds from the trainer's first step to the end of its last."""

    def on_train_begin(self, *_, **__):
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        self.wall_s, self.cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu


class Dialogues:
    """The `rollout_func`: the dialogues of the recipe, all of a batch side by side."""

    def __init__(self, recipe: Recipe, tasks: dict[str, dict], tokenizer):
        self._recipe, self._tasks, self._tokenizer, self._seed = recipe, tasks, tokenizer, 0

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict:
        rows = len(prompts)
        made = [environments.make(self._recipe.environment) for _ in prompts]
        for place, (environment, prompt) in enumerate(zip(made, prompts, strict=True)):
            environment.reset(seed=self._seed + place, options={"task": self._tasks[prompt]})
        self._seed += rows
        prompt_ids = self._tokenizer(prompts)["input_ids"]
        completions, masks, returns = [[] for _ in prompts], [[] for _ in prompts], [0.0] * rows

        def hear(texts: list[str]) -> None:
            for place, ids in enumerate(self._tokenizer(texts)["input_ids"]):
                self._end(completions[place], masks[place])
                completions[place] += ids
                masks[place] += [0] * len(ids)

        def say() -> list[str]:
            heads = [ids + said for ids, said in zip(prompt_ids, completions, strict=True)]
            responses, _ = trainer._generate_single_turn(heads, None, {}, 1)
            for completion, mask, response in zip(completions, masks, responses, strict=True):
                completion += response
                mask += [1] * len(response)
            return [text.removesuffix("\n") for text in self._tokenizer.batch_decode(responses)]

        with ThreadPoolExecutor(rows) as threads:
            for turn in range(self._recipe.rollout.turns):
                if turn:
                    hear([step[0] for step in steps])
                    if self._recipe.rollout.reflect:
                        say()
                        hear([""] * rows)
                texts = say()
                steps = list(threads.map(lambda environment, text: environment.step(text), made, texts))
                returns = [total + step[1] for total, step in zip(returns, steps, strict=True)]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completions,
            "logprobs": None,
            "env_mask": masks,
            "returns": returns,
        }

    def _end(self, completion: list[int], mask: list[int]) -> None:
        """Ends an answer that came to no end by itself."""
        if completion[-1] != self._tokenizer.eos_token_id:
            completion.append(self._tokenizer.eos_token_id)
            mask.append(0)


def graded(recipe: Recipe, tasks: dict[str, dict]):
    """The reward function of single answers."""
    environment = environments.make(recipe.environment)

    def reward(prompts: list[str], completions: list[str], **_) -> list[float]:
        return [
            environment.judge(tasks[prompt], text.removesuffix("\n")).reward
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    return reward


def of_dialogues(prompts: list[str], returns: list[float], **_) -> list[float]:
    """The reward function of dialogues."""
    return returns


def config(recipe: Recipe, out: Path, device: str, seed: int) -> GRPOConfig:
    learner, optimizer = recipe.learner, recipe.learner.optimizer
    return GRPOConfig(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=learner.batch_groups * recipe.rollout.episodes,
        num_generations=recipe.rollout.episodes,
        max_completion_length=recipe.sampling.max_tokens,
        temperature=recipe.sampling.temperature,
        beta=learner.objective.kl,
        epsilon=learner.objective.clip_low,
        epsilon_high=learner.objective.clip_high,
        use_bias_correction_kl=False,
        loss_type="dapo",
        scale_rewards="group",
        learning_rate=optimizer.lr,
        warmup_steps=optimizer.warmup_steps,
        lr_scheduler_type="constant_with_warmup",
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=device == "cpu",
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
    )


def main(job: dict) -> dict:
    """Trains; returns seconds, and where the model lies."""
    began = time.perf_counter()
    torch.set_num_threads(job["threads"])
    recipe, out = load(Path(job["recipe"]), job["changes"]), Path(job["out"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation=recipe.learner.attention
    )
    order = TaskOrder(environments.tasks(recipe.environment, recipe.data, "train"), recipe.seed)
    environment = environments.make(recipe.environment)
    chosen = [order.task(place)[1] for place in range(recipe.steps * recipe.learner.batch_groups)]
    tasks = {environment.question(task): task for task in chosen}
    dialogues = recipe.rollout.name == "retry"
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=config(recipe, out, job["device"], job["seed"]),
        train_dataset=Dataset.from_list([{"prompt": environment.question(task)} for task in chosen]),
        reward_funcs=of_dialogues if dialogues else graded(recipe, tasks),
        rollout_func=Dialogues(recipe, tasks, tokenizer) if dialogues else None,
        callbacks=[clock],
    )
    whole = time.perf_counter()
    trainer.train()
    start_s = whole - began + time.perf_counter() - whole - clock.wall_s
    trainer.save_model(str(out / "model"))
    return {"wall_s": clock.wall_s, "cpu_s": clock.cpu_s, "start_s": start_s, "model": str(out / "model")}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
