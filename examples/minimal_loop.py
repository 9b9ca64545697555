"""The method in one file, without the system: play dialogues, say what each turn is worth, learn from that, again.

    .venv/bin/python examples/minimal_loop.py    # some minutes on two CPU cores

An agent is asked a puzzle of `signs`, hears how far off its answer is, reflects, and answers again, five times in all:

    7128>12        puzzle: put + or - between 7 1 2 8 to make 12
    7+1-2-8        attempt       turn 1
    ?-14           environment: the value minus the target
    18             reflection    turn 2, like the attempt that it leads to: flip the signs before these digits
    7-1-2+8        attempt       turn 2

The small model that it begins with knows this form, but reflects at random. A method is three choices, and each of
them is one function of this file; here they are those of recipes/quickstart.yaml, with the same settings:

    rollout    `play`    retry: an attempt, then again and again a reflection and an attempt, also after a right one
    credit     `credit`  turnwise: the reward of a turn less the mean reward of all turns of its number in the batch
    objective  `loss`    awr: cross-entropy on the model's own tokens, weighted by exp(credit / temperature)

What it printed: accuracy by turn on 500 test puzzles, at temperature 1 (standard error .02), five turns always.

    before, the same model for both seeds               .33 .14 .12 .13 .12
    after 160 steps, --seed 0 and --seed 1              .52 .67 .74 .78 .80  and  .51 .62 .68 .73 .71
    ROUND = 1, each step on what was just played        .39 .60 .70 .72 .72  (--seed 0)

What is left out, and where the whole of it is:

    playing while learning, with a bound on staleness; leases   redraft/control/controller.py
    vLLM, many dialogues in each of many actors                 actors/actor.py, actors/engines/vllm_local.py
    turns on disk, learned from once whatever dies; checkpoints replay/, learner/checkpoint.py, redraft/run.py
    packed rows, bounded memory for log-probs, several ranks    learner/batches/, learner/model/, learner/ranks/
    new weights in the engines, and the proof of it             learner/weights/, actors/weights.py
    environments that hang or fail; other rollouts              actors/environment_pool.py, actors/rollouts/
    other credits and losses, such as GRPO's with its ratios    learner/credits/, learner/objectives/
    recipes, more figures than accuracy, a report, a viewer     redraft/recipe.py, redraft/evaluation/, redraft/report/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from actors import environments, rendering
from actors.config import DataSettings, EnvironmentSettings
from actors.tasks import TaskOrder
from learner.model.load import load_model
from protocols.turns import LOGPROBS, TOKENS, Group, Role, Stop, Turn
from redraft.config import MakeSettings, ModelSettings, PretrainSettings
from redraft.models.make import prepare

ENVIRONMENT = EnvironmentSettings(name="signs", feedback="residual")
MODEL = ModelSettings(make=MakeSettings(pretrain=PretrainSettings()), dtype="float32")  # .37M parameters
TURNS, MAX_TOKENS = 5, 9  # attempts of an episode, tokens of a response
WHOLE = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # from the whole distribution, as it is
BATCH, STEPS = 128, 160  # episodes of an optimizer step, steps
ROUND = 3  # batches that one policy plays, so that the last is learned from 2 steps later: max_staleness of the recipe
TEMPERATURE, MAX_WEIGHT = 0.5, 20.0  # of the objective
LR, WARMUP, CLIP = 5e-4, 20, 1.0
TESTS, SAY_EVERY = 500, 20


def play(model, renderer: rendering.Renderer, tasks: Sequence[dict], version: int = 0) -> list[Group]:
    """The rollout: one episode of each task, side by side. A turn carries the tokens that its parent lacks."""
    played = [environments.make(ENVIRONMENT) for _ in tasks]
    questions = [one.reset(seed=0, options={"task": task})[0] for one, task in zip(played, tasks, strict=True)]
    heard = [renderer.first(question) for question in questions]  # token ids that the model has yet to read
    episodes: list[list[Turn]] = [[] for _ in tasks]
    for index in range(TURNS):
        for role in (Role.REFLECTION, Role.ATTEMPT) if index else (Role.ATTEMPT,):
            contexts = [np.concatenate([*tokens(turns), new]) for turns, new in zip(episodes, heard, strict=True)]
            for place, (ids, logprobs) in enumerate(sample(model, renderer, contexts)):
                stop, number = Stop.END if renderer.ended(ids) else Stop.LENGTH, len(episodes[place])
                where = {"group": place.to_bytes(16), "lease": 0, "turn": number, "parent": number - 1}
                said = {"prompt": heard[place], "response": ids, "logprobs": logprobs, "versions": ((0, version),)}
                episodes[place].append(Turn(**where, **said, role=role, index=index, after=number - 1, stop=stop))
                heard[place] = renderer.next("", stop is Stop.END)
        for place, (environment, turns) in enumerate(zip(played, episodes, strict=True)):
            observation, reward, *_ = environment.step(renderer.text(turns[-1].response))
            heard[place] = renderer.next(observation, turns[-1].stop is Stop.END)
            # A reflection is worth what the attempt is worth that it led to.
            turns[:] = [replace(one, reward=reward) if one.index == index else one for one in turns]
    return [Group(place.to_bytes(16), 0, tuple(turns)) for place, turns in enumerate(episodes)]


def tokens(turns: Sequence[Turn]) -> list[np.ndarray]:
    """What was heard and said so far, in order."""
    return [part for one in turns for part in (one.prompt, one.response)]


@torch.no_grad()
def sample(model, renderer: rendering.Renderer, contexts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A response to each context: int32[R] ids with the end token, and float32[R], how likely the model found each."""
    rows = [torch.from_numpy(context.astype(np.int64)) for context in contexts]
    made = model.generate(
        pad_sequence(rows, batch_first=True, padding_side="left"),
        attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"),
        max_new_tokens=MAX_TOKENS,
        eos_token_id=list(renderer.ends),
        pad_token_id=renderer.end,
        **WHOLE,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logprobs_BRV = torch.stack(made.logits, 1).float().log_softmax(-1)
    ids_BR = made.sequences[:, -logprobs_BRV.shape[1] :]
    logprobs_BR = logprobs_BRV.gather(-1, ids_BR[..., None]).squeeze(-1)
    ends_BR = torch.isin(ids_BR, torch.tensor(renderer.ends))
    lengths = ((ends_BR.cumsum(1) - ends_BR.long()) == 0).sum(1).tolist()  # up to the first end token, and with it
    pairs = zip(ids_BR.numpy().astype(TOKENS), logprobs_BR.numpy().astype(LOGPROBS), lengths, strict=True)
    return [(ids[:length], logprobs[:length]) for ids, logprobs, length in pairs]


def accuracy(groups: Sequence[Group]) -> np.ndarray:
    """float64[TURNS]: the mean reward of the attempts by their number, which in `signs` is the share of right ones."""
    return np.mean([[one.reward for one in group.turns if one.role is Role.ATTEMPT] for group in groups], 0)


def credit(groups: Sequence[Group]) -> list[np.ndarray]:
    """The credit: each turn's advantage, float32[turns] a group. Late turns are not favoured for being late."""
    mean = accuracy(groups)
    return [np.array([one.reward - mean[one.index] for one in group.turns], np.float32) for group in groups]


def weigh(groups: Sequence[Group], advantages: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the objective needs: episodes as rows, int64[B, T], and each token's share of the loss, float32[B, T].

    Shares add up to 1; what the environment said has none, and is only read.
    """
    ids, weights = [], []
    for group, worth in zip(groups, advantages, strict=True):
        weight = np.exp(np.minimum(worth.astype(np.float64) / TEMPERATURE, np.log(MAX_WEIGHT)))
        lengths = [length for one in group.turns for length in (len(one.prompt), len(one.response))]
        weights.append(torch.from_numpy(np.repeat(np.stack([0 * weight, weight], 1).ravel(), lengths)))
        ids.append(torch.from_numpy(np.concatenate(tokens(group.turns)).astype(np.int64)))
    weight_BT = pad_sequence(weights, batch_first=True)
    return pad_sequence(ids, batch_first=True), (weight_BT / weight_BT.sum()).float()


def loss(model, ids_BT: torch.Tensor, share_BT: torch.Tensor) -> torch.Tensor:
    """The objective: weighted cross-entropy, in nats. Padding at the right needs no mask: no token looks ahead."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    logprobs_BT = logits_BTV.float().log_softmax(-1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return -(share_BT[:, 1:] * logprobs_BT).sum()


def train(model, renderer: rendering.Renderer, tasks: TaskOrder, steps: int) -> None:
    """Trains the model in place: plays some batches, then takes one optimizer step on each, and again."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        if step % ROUND == 0:
            count = min(ROUND, steps - step) * BATCH
            groups = play(model, renderer, [tasks.task(step * BATCH + place)[1] for place in range(count)], step)
        batch, groups = groups[:BATCH], groups[BATCH:]
        value = loss(model, *weigh(batch, credit(batch)))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % SAY_EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1}: loss {value.item():.3f}, right by turn {accuracy(batch).round(2)}", flush=True)


def examine(when: str, model, renderer: rendering.Renderer, tests: Sequence[dict]) -> None:
    """Plays the test tasks; prints the accuracy by turn, and a dialogue."""
    torch.manual_seed(0)
    groups = play(model, renderer, tests)
    better = [group for group in groups if group.turns[0].reward < group.turns[-1].reward]
    print(
        f"{when}: right by turn {accuracy(groups).round(2)}; {len(better)} of {len(tests)} begin wrong and end right:\n"
    )
    print(renderer.tokenizer.decode(np.concatenate(tokens((better or groups)[0].turns))), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a second one gains little here, and on a busy machine both lose much
    folder = prepare(MODEL, ENVIRONMENT, Path(".cache/models"))  # made once, in about a minute
    model = load_model(str(folder), torch.float32, attention="sdpa")
    renderer = rendering.load(folder)
    tasks = TaskOrder(environments.tasks(ENVIRONMENT, DataSettings(), "train"), chosen.seed)
    tests = environments.tasks(ENVIRONMENT, DataSettings(), "test")[:TESTS]
    examine("before", model, renderer, tests)
    torch.manual_seed(chosen.seed)
    train(model, renderer, tasks, chosen.steps)
    examine("after", model, renderer, tests)


if __name__ == "__main__":
    main()
