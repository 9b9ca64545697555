"""Reflect, Retry, Reward on a real model: only reflections are rewarded, each by its own retry, and the anchor is the
only thing that reaches any other token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.model.policy import Policy
from learner.objectives import loss_of, make
from protocols.turns import Group, Role, Turn

VOCABULARY = 1000
PARENTS = (-1, 0, 1, 0, 3, 0, 5)
ROLES = (Role.ATTEMPT, *(Role.REFLECTION, Role.RETRY) * 3)


def groups(rewards: list[tuple[float, float, float]]) -> list[Group]:
    """Of each failed attempt three reflections, whose retries get these rewards. No token occurs twice."""
    random, number, made = np.random.default_rng(0), 1, []
    for place, of_retries in enumerate(rewards):
        turns = []
        for turn, (role, parent) in enumerate(zip(ROLES, PARENTS, strict=True)):
            prompt, response = random.integers(2, 5, 2)
            tokens = np.arange(number, number := number + prompt + response, dtype=np.int32)
            arrays = (tokens[:prompt], tokens[prompt:], np.full(response, -np.log(VOCABULARY), np.float32))
            episode = max(0, turn - 1) // 2
            facts = {
                "episode": episode,
                "index": min(turn, 1),
                "after": parent,
                "reward": of_retries[episode] if turn else -1.0,
            }
            turns.append(Turn(bytes([place] * 16), 1, turn, parent, *arrays, ((0, 0),), role, **facts))
        made.append(Group(bytes([place] * 16), 1, tuple(turns)))
    return made


def tokens_of(made: list[Group], *roles: Role) -> set[int]:
    """Response tokens of these roles."""
    return {int(token) for group in made for turn in group.turns if turn.role in roles for token in turn.response}


def tiny(seed: int) -> Policy:
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    return Policy(Qwen2ForCausalLM._from_config(config, attn_implementation="eager"), packed=True)


def backward(policy: Policy, start: Policy, made: list[Group], **objective) -> dict[int, float]:
    """Adds the batch's gradient to the policy's. Returns, for each token of the rows, the largest size of the gradient
    with respect to the hidden state whose logits predict it."""
    chosen = {"name": "grpo", "correction": "tis", **objective}  # which ends no token's gradient
    choice = LearnerSettings(
        credit={"name": "reflection"}, objective=chosen, row_tokens=64, micro_tokens=64, ranks=2, average="token"
    )
    sizes: dict[int, float] = {}
    for micro in (micro for rank in prepare(made, 0, choice).micros for micro in rank):
        tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        inputs = (*(tensors[name] for name in ("tokens", "positions", "picks", "targets")), micro.chunks)
        with torch.no_grad():
            reference = start(*inputs)[0]
        kept = []
        hook = policy.model.get_decoder().register_forward_hook(lambda *call, kept=kept: kept.append(call[-1][0]))
        logprobs, entropy = policy(*inputs)
        hook.remove()
        kept[0].retain_grad()
        loss, _ = loss_of(make(choice.objective), logprobs, entropy, tensors, reference)
        loss.backward()
        gradient = kept[0].grad.abs().amax(-1)
        for row, positions in enumerate(micro.positions):
            for place in np.flatnonzero(positions[1:] == positions[:-1] + 1):
                token = int(micro.tokens[row, place + 1])
                sizes[token] = max(sizes.get(token, 0.0), gradient[row, place].item())
    return sizes


REWARDS = [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)]


@pytest.mark.parametrize("kl", [0.0, 0.005])
def test_without_an_anchor_nothing_but_reflections_has_a_gradient(kl):
    made, policy = groups(REWARDS), tiny(0)
    sizes = backward(policy, tiny(1), made, kl=kl)
    reflections = tokens_of(made, Role.REFLECTION)
    assert reflections <= sizes.keys()
    assert {token for token, size in sizes.items() if size > 0} == reflections
    assert all(size == 0 for token, size in sizes.items() if token not in reflections), "exactly"


def test_with_an_anchor_all_that_the_model_sampled_has_a_gradient_and_no_prompt_has():
    made, policy = groups(REWARDS), tiny(0)
    sizes = backward(policy, tiny(1), made, kl=0.005, anchor=1.0)
    assert {token for token, size in sizes.items() if size > 0} == tokens_of(made, *ROLES)


def without_logprobs(made: list[Group], turn: int) -> list[Group]:
    """The same groups, that turn not sampled in this run."""
    changed = [replace(group.turns[turn], logprobs=np.full_like(group.turns[turn].logprobs, np.nan)) for group in made]
    return [
        replace(group, turns=(*group.turns[:turn], other, *group.turns[turn + 1 :]))
        for group, other in zip(made, changed, strict=True)
    ]


def test_an_anchor_holds_the_failed_answers_of_a_dataset_and_nothing_else_that_was_written():
    made, retry = groups(REWARDS), 2
    failures = without_logprobs(made, 0)
    sizes = backward(tiny(0), tiny(1), failures, anchor=1.0)
    assert {token for token, size in sizes.items() if size > 0} == tokens_of(made, *ROLES)
    sizes = backward(tiny(0), tiny(1), without_logprobs(made, retry), anchor=1.0)
    written = {int(token) for group in made for token in group.turns[retry].response}
    assert {token for token, size in sizes.items() if size > 0} == tokens_of(made, *ROLES) - written


def test_at_the_start_model_itself_an_anchor_pulls_nowhere():
    made, policy = groups(REWARDS), tiny(0)
    sizes = backward(policy, tiny(0), made, anchor=1.0)
    assert {token for token, size in sizes.items() if size > 0} == tokens_of(made, Role.REFLECTION)


def score(policy: Policy, group: Group, turn: int) -> float:
    """Log-prob of one turn after what came before it."""
    path = [group.turns[turn]]
    while path[-1].parent >= 0:
        path.append(group.turns[path[-1].parent])
    ids = torch.from_numpy(np.concatenate([part for t in reversed(path) for part in (t.prompt, t.response)])).long()
    with torch.no_grad():
        logprobs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])
    return logprobs[-len(path[0].response) :].sum().item()


@pytest.mark.parametrize("right", [0, 1, 2])
def test_the_reward_of_a_retry_reaches_the_reflection_that_led_to_it_and_no_other(right):
    rewards = tuple(float(episode == right) for episode in range(3))
    (made,), policy = groups([rewards]), tiny(0)
    reflections = (1, 3, 5)
    before = [score(policy, made, turn) for turn in reflections]
    backward(policy, tiny(1), [made])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.05 * parameter.grad
    after = [score(policy, made, turn) for turn in reflections]
    rose = [new > old for new, old in zip(after, before, strict=True)]
    assert rose == [episode == right for episode in range(3)]


def test_retries_of_equal_reward_teach_nothing():
    made, policy = groups([(1.0, 1.0, 1.0)]), tiny(0)
    sizes = backward(policy, tiny(1), made)
    assert not any(sizes.values())
    assert not any(parameter.grad.any() for parameter in policy.parameters())
