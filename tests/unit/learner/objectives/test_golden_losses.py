"""Losses and gradients of every objective against a second implementation, written here in float64 from the formulas
of the papers, over random trees of turns that go through the real credits, sequences, shares and packing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batches.batch import prepare
from learner.batches.packing import MicroBatch
from learner.config import LearnerSettings
from learner.model.policy import Policy
from learner.objectives import STATS, loss_of, make, report
from protocols.turns import Group, Role, Turn

ROW, ROLES = 64, {"attempt": 1.0, "reflection": 2.0, "retry": 0.5}
A, F, R, E = Role.ATTEMPT, Role.REFLECTION, Role.RETRY, Role.ERROR
SHAPE = [  # role, episode, index, parent: three reflections on one attempt, of which one breaks off, and a dialogue
    *((A, 0, 0, -1), (F, 0, 1, 0), (R, 0, 1, 1), (F, 1, 1, 0), (R, 1, 1, 3), (F, 2, 1, 0), (E, 2, 1, 5)),
    *((A, 3, 0, -1), (F, 3, 1, 7), (A, 3, 1, 8)),
]
BROKEN = 2  # the episode that broke off: it tells nothing


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def batch(count: int = 5) -> tuple[Group, ...]:
    """Groups of SHAPE. Each token of a response is a number that no other token of the batch has."""
    random, number = np.random.default_rng(7), 1
    made = []
    for place in range(count):
        turns, rewards = [], {}
        for turn, (role, episode, index, parent) in enumerate(SHAPE):
            prompt, response = (int(random.integers(0, 4)), 0 if role is E else int(random.integers(1, 6)))
            ids = [
                np.arange(number + start, number + start + size) for start, size in ((0, prompt), (prompt, response))
            ]
            number += prompt + response
            logprobs = -random.uniform(0.2, 3.0, response).astype(np.float32)
            logprobs[random.random(response) < 0.1] = np.nan  # authored
            if turn == place % 2 == 0:
                logprobs[:] = np.nan  # a failed answer that the task brought along
            reward = rewards.setdefault((episode, index), float(random.choice([-1, 0, 0.5, 1])))
            arrays = (*(part.astype(np.int32) for part in ids), logprobs)
            facts = {"episode": episode, "index": index, "after": parent, "reward": reward}
            turns.append(Turn(bytes([place] * 16), 1, turn, parent, *arrays, ((0, 0),), role, **facts))
        made.append(Group(bytes([place] * 16), 1, tuple(turns)))
    return tuple(made)


SIZE = 1 + max(int(t.response.max(initial=0)) for g in batch() for t in g.turns)
RANDOM = np.random.default_rng(8)
SAMPLER = np.zeros(SIZE)
for _group in batch():
    for _turn in _group.turns:
        SAMPLER[_turn.response] = np.nan_to_num(_turn.logprobs)
CURRENT = SAMPLER + RANDOM.normal(0, 0.25, SIZE)
START = CURRENT + RANDOM.normal(0, 0.25, SIZE)


# The second implementation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token that counts, by its id: its turn and sequence in the batch, its role's weight, its advantage."""

    id: int
    turn: tuple[int, int]
    sequence: tuple[int, int]
    weight: float
    advantage: float
    sampled: bool


def first_leaf(group: Group, turn: Turn) -> int:
    """The first turn without children that follows from `turn`, which names the sequence where its tokens count."""
    children = [t for t in group.turns if t.parent == turn.turn and t.role is not E]
    return min((first_leaf(group, child) for child in children), default=turn.turn)


@cache
def tokens_of(case: Case, authored: bool) -> list[Token]:
    """The tokens of the batch, but for authored ones where those do not count; answers brought along always do."""
    found = []
    for place, group in enumerate(batch()):
        for turn in (t for t in group.turns if t.role is not E):
            weight = case.roles.get(turn.role.name.lower(), 0.0)
            advantage = np.nan if turn.episode == BROKEN else case.worth(place, turn)
            brought = turn.role is A and turn.after < 0 and np.isnan(turn.logprobs).all()
            for spot, token in enumerate(turn.response):
                sampled = not np.isnan(turn.logprobs[spot])
                first = turn.parent < 0 and not len(turn.prompt) and spot == 0
                if not first and (authored or sampled or brought):
                    names = ((place, turn.turn), (place, first_leaf(group, turn)))
                    found.append(Token(int(token), *names, weight, advantage, sampled))
    return found


def is_trained(token: Token) -> bool:
    return token.weight > 0 and not np.isnan(token.advantage)


def shares_of(tokens: list[Token], average: str) -> np.ndarray:
    """w / sum of w, where w is the role's weight, divided by how many tokens the turn or the sequence has."""
    weights = [token.weight for token in tokens]
    if average in ("turn", "sequence"):
        owners = [getattr(token, average) for token in tokens]
        counts = Counter(owners)
        weights = [weight / counts[owner] for weight, owner in zip(weights, owners, strict=True)]
    total = ROW * len({token.sequence for token in tokens}) if average == "constant" else sum(weights)
    return np.array(weights) / total


def returns(place: int) -> dict[int, float]:
    """Sum over an episode of the rewards of what was answered, of those that came to their end."""
    found: dict[int, float] = {}
    for turn in (turn for turn in batch()[place].turns if turn.episode != BROKEN):
        found[turn.episode] = found.get(turn.episode, 0.0) + turn.reward * (turn.role not in (F, E))
    return found


def grpo_worth(place: int, turn: Turn, std: bool = True) -> float:
    """(R - mean) / std over the episodes of the group."""
    values = np.array(list(returns(place).values()))
    return (returns(place)[turn.episode] - values.mean()) / ((values.std() + 1e-6) if std else 1.0)


def dapo_worth(place: int, turn: Turn) -> float:
    """The same with a return that loses up to 1 for each response of more than 4 - 2 tokens."""
    values = returns(place)
    for t in batch()[place].turns:
        if t.episode in values:
            values[t.episode] -= float(np.clip((len(t.response) - 2) / 2, 0, 1))
    every = np.array(list(values.values()))
    return (values[turn.episode] - every.mean()) / (every.std() + 1e-6)


def reflection_worth(place: int, turn: Turn) -> float:
    """The reward of the retry against those of the group, on the reflection; other turns are not trained."""
    if turn.role is not F or turn.episode == 2:
        return np.nan
    rewards = {t.episode: t.reward for t in batch()[place].turns if t.index == 1 and t.role in (A, R)}
    values = np.array(list(rewards.values()))
    return (rewards[turn.episode] - values.mean()) / (values.std() + 1e-6)


def turnwise_worth(place: int, turn: Turn) -> float:
    rewards = [t.reward for g in batch() for t in g.turns if t.index == turn.index and t.role not in (F, E)]
    return turn.reward - float(np.mean(rewards))


def clip_loss(ratio: np.ndarray, worth: np.ndarray, low: float, high: float) -> np.ndarray:
    return -np.minimum(ratio * worth, np.clip(ratio, 1 - low, 1 + high) * worth)


def k3(theta: np.ndarray, start: np.ndarray) -> np.ndarray:
    return np.exp(start - theta) - 1 - (start - theta)


def policy_loss(case: Case, theta: np.ndarray, prox: np.ndarray, mu: np.ndarray, start: np.ndarray) -> float:
    """The scalar loss of a batch: log-probs by token id under the current policy, the same before the batch (which no
    gradient goes through), the sampler's and the start model's."""
    everything = tokens_of(case, authored=False)
    trained = [t for t in everything if is_trained(t) and t.sampled]
    other = [t for t in everything if not is_trained(t)]
    ids, worth = np.array([t.id for t in trained]), np.array([t.advantage for t in trained])
    share = shares_of(trained, case.average)
    each = case.loss(theta[ids], prox[ids], mu[ids], worth, [t.sequence for t in trained])
    loss = share @ (each + case.kl * k3(theta[ids], start[ids]))
    if case.anchor:
        ids = np.array([t.id for t in other])
        loss += case.anchor * k3(theta[ids], start[ids]).sum() / sum(t.weight for t in trained)
    return float(loss)


def imitation_loss(case: Case, theta: np.ndarray, *_) -> float:
    tokens = [t for t in tokens_of(case, authored=True) if is_trained(t)]
    share = shares_of(tokens, case.average)
    weight = case.loss(np.array([t.advantage for t in tokens]))
    weighted = share * weight
    return float(-(weighted / weighted.sum() if case.normalised else weighted) @ theta[[t.id for t in tokens]])


def grpo_loss(low=0.2, high=0.2):
    return lambda theta, prox, mu, worth, _: clip_loss(np.exp(theta - mu), worth, low, high)


def gspo_loss(theta, prox, mu, worth, sequences):
    """s = (pi(y)/mu(y))^(1/|y|), with its whole gradient."""
    log_ratio = {name: [] for name in sequences}
    for value, name in zip(theta - mu, sequences, strict=True):
        log_ratio[name].append(value)
    s = np.exp([np.mean(log_ratio[name]) for name in sequences])
    return clip_loss(s, worth, 0.05, 0.1)


def cispo_loss(theta, prox, mu, worth, _):
    return -np.clip(np.exp(prox - mu), 1 - 0.3, 1 + 0.1) * worth * theta


def tis_loss(theta, prox, mu, worth, _):
    return np.minimum(np.exp(prox - mu), 1.3) * clip_loss(np.exp(theta - prox), worth, 0.2, 0.2)


def decoupled_loss(theta, prox, mu, worth, _):
    weight = np.exp(prox - mu)
    return np.where(weight > 1.3, 0.0, weight) * clip_loss(np.exp(theta - prox), worth, 0.2, 0.2)


# What is compared ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """Settings of the learner, and the same said again for the second implementation."""

    settings: dict
    worth: object
    loss: object
    average: str
    roles: dict
    kl: float = 0.0
    anchor: float = 0.0
    imitates: bool = False
    normalised: bool = False
    cuts: bool | None = None
    """Whether some tokens lose their gradient; None where nothing can."""

    def value(self, *policies: np.ndarray) -> float:
        return (imitation_loss if self.imitates else policy_loss)(self, *policies)

    def gradient(self, *policies: np.ndarray) -> np.ndarray:
        """By central differences, prox being held."""
        theta, *others = policies
        found = np.zeros(SIZE)
        for token in {t.id for t in tokens_of(self, authored=True)}:
            values = []
            for step in (1e-6, -1e-6):
                moved = theta.copy()
                moved[token] += step
                values.append(self.value(moved, *others))
            found[token] = (values[0] - values[1]) / 2e-6
        return found


def grpo(**values) -> dict:
    return {"name": "grpo", "correction": "none", **values}


ALL = {role: 1.0 for role in ROLES}
GROUP = {"name": "group"}
KL = {"kl": 0.05, "anchor": 1.0}
CASES = {
    "grpo": Case({"objective": grpo(), "credit": GROUP}, grpo_worth, grpo_loss(), "sequence", ALL, cuts=True),
    "dr-grpo": Case(
        {"objective": grpo(), "credit": {"name": "group", "std": False}},
        lambda place, turn: grpo_worth(place, turn, std=False),
        *(grpo_loss(), "constant", ALL),
        cuts=True,
    ),
    "dapo": Case(
        {"objective": grpo(clip_high=0.28), "credit": {"name": "group", "overlong": {"limit": 4, "cache": 2}}},
        *(dapo_worth, grpo_loss(0.2, 0.28), "token", ALL),
        cuts=True,
    ),
    "gspo": Case(
        {"objective": grpo(ratio="sequence", clip_low=0.05, clip_high=0.1), "credit": GROUP},
        *(grpo_worth, gspo_loss, "sequence", ALL),
        cuts=True,
    ),
    "cispo": Case(
        {"objective": grpo(loss="cispo", clip_low=0.3, clip_high=0.1), "credit": GROUP},
        *(grpo_worth, cispo_loss, "token", ALL),
        cuts=False,
    ),
    "tis": Case(
        {"objective": grpo(correction="tis", tis_cap=1.3), "credit": GROUP},
        *(grpo_worth, tis_loss, "token", ALL),
        cuts=False,
    ),
    "decoupled": Case(
        {"objective": grpo(correction="decoupled", max_weight=1.3), "credit": GROUP},
        *(grpo_worth, decoupled_loss, "token", ROLES),
        cuts=True,
    ),
    "grpo with roles, turns and a divergence": Case(
        {"objective": grpo(kl=0.1), "credit": GROUP},
        *(grpo_worth, grpo_loss(), "turn", {"reflection": 2.0, "retry": 0.5}),
        kl=0.1,
        cuts=True,
    ),
    "reflect": Case(
        {"objective": grpo(**KL), "credit": {"name": "reflection"}},
        *(reflection_worth, grpo_loss(), "token", ROLES),
        **KL,
        cuts=True,
    ),
    "rise": Case(
        {"objective": {"name": "awr", "normalise": False}, "credit": {"name": "raw"}},
        lambda place, turn: turn.reward,
        *(lambda worth: np.exp(worth / 0.4), "turn", ALL),
        imitates=True,
    ),
    "rise-turnwise": Case(
        {"objective": {"name": "awr", "temperature": 0.5}, "credit": {"name": "turnwise", "baseline": "batch"}},
        *(turnwise_worth, lambda worth: np.exp(worth / 0.5), "token", ROLES),
        **{"imitates": True, "normalised": True},
    ),
    "sft": Case(
        {"objective": {"name": "sft"}, "credit": {"name": "raw", "keep": "success"}},
        lambda place, turn: turn.reward if turn.reward >= 1 and turn.episode != 2 else np.nan,
        *(lambda worth: np.maximum(worth, 0), "sequence", {"reflection": 2.0, "attempt": 1.0, "retry": 1.0}),
        **{"imitates": True, "normalised": True},
    ),
}
SPLITS = {
    "one micro-batch": {"row_tokens": ROW, "micro_tokens": 32 * ROW},
    "small ones on two ranks": {"row_tokens": ROW, "micro_tokens": ROW, "ranks": 2},
}


def settings_of(case: Case, **values) -> LearnerSettings:
    return LearnerSettings(**{"average": case.average, "roles": case.roles, **case.settings, **values})


def micros_of(choice: LearnerSettings) -> list[tuple[MicroBatch, dict[str, torch.Tensor]]]:
    every = [micro for rank in prepare(batch(), 0, choice).micros for micro in rank]
    return [(micro, {name: torch.from_numpy(array) for name, array in micro.arrays().items()}) for micro in every]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_formulas(case, split):
    choice = settings_of(case, **split)
    objective = make(choice.objective)
    logprobs = torch.tensor(CURRENT, dtype=torch.float32, requires_grad=True)
    start = torch.tensor(START, dtype=torch.float32) if objective.reference else None
    loss, stats = 0.0, np.zeros(len(STATS))
    for _, tensors in micros_of(choice):
        targets = tensors["targets"]
        chosen = None if start is None else start[targets]
        part, more = loss_of(objective, logprobs[targets], torch.zeros(len(targets)), tensors, chosen)
        part.backward()
        loss, stats = loss + part.item(), stats + more.numpy()
    policies = (CURRENT, CURRENT, SAMPLER, START)
    assert loss == pytest.approx(case.value(*policies), rel=1e-4, abs=1e-6)
    expected = case.gradient(*policies)
    assert np.count_nonzero(expected) > 20
    np.testing.assert_allclose(logprobs.grad.numpy(), expected, rtol=2e-4, atol=2e-7)
    assert not logprobs.grad.numpy()[expected == 0].any(), "exactly zero where the formula has nothing"
    if case.cuts is not None:
        assert (report(stats).masked_share > 0) == case.cuts


def tiny(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=SIZE, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    config.initializer_range = 0.2
    return Qwen2ForCausalLM._from_config(config, attn_implementation="eager")


def scores(model: Qwen2ForCausalLM) -> torch.Tensor:
    """Log-probs of all response tokens by id, each path of each group forwarded alone, through nothing of ours."""
    found = torch.zeros(SIZE)
    for group in batch():
        for turn in (t for t in group.turns if t.role is not E):
            path = [turn]
            while path[-1].parent >= 0:
                path.append(group.turns[path[-1].parent])
            ids = torch.from_numpy(np.concatenate([x for t in reversed(path) for x in (t.prompt, t.response)])).long()
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
            for place in range(max(1, len(ids) - len(turn.response)), len(ids)):
                found[ids[place]] = logprobs[place - 1, ids[place]]
    return found


@pytest.mark.parametrize("name", ["grpo", "gspo", "decoupled", "reflect"])
def test_the_gradient_of_a_real_model_is_that_of_the_formulas(name):
    case = CASES[name]
    choice = settings_of(case, **SPLITS["small ones on two ranks"])
    objective, policy, start = make(choice.objective), Policy(tiny(0)), Policy(tiny(1))
    alone = scores(policy.model)
    policies = (alone.detach().double().numpy(), SAMPLER, scores(start.model).detach().double().numpy())
    sampler = policies[0] + (SAMPLER - CURRENT)  # near enough for ratios that are not all clipped
    slope = case.gradient(policies[0], policies[0], sampler, policies[2])
    alone.backward(torch.tensor(slope, dtype=torch.float32))
    expected = [parameter.grad.clone() for parameter in policy.parameters()]
    policy.zero_grad()
    for micro, tensors in micros_of(choice):
        tensors["sampler"] = torch.tensor(sampler, dtype=torch.float32)[tensors["targets"]]
        inputs = (*(tensors[key] for key in ("tokens", "positions", "picks", "targets")), micro.chunks)
        with torch.no_grad():
            reference = start(*inputs)[0] if objective.reference else None
        loss, _ = loss_of(objective, *policy(*inputs), tensors, reference)
        loss.backward()
    largest = max(gradient.abs().max().item() for gradient in expected)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * largest)


def test_awr_weights_of_rise_at_temperature_04():
    turns = []
    for place, reward in enumerate((1.0, 0.0, -1.0)):
        arrays = (np.array([1], np.int32), np.array([place + 5], np.int32), np.array([-1.0], np.float32))
        turns.append(Turn(b"r" * 16, 1, place, -1, *arrays, ((0, 0),), A, episode=place, reward=reward))
    objective = {"name": "awr", "temperature": 0.4, "normalise": False}
    choice = LearnerSettings(objective=objective, credit={"name": "raw"})
    ((micro,),) = prepare([Group(b"r" * 16, 1, tuple(turns))], 0, choice).micros
    weights = dict(zip(micro.targets.tolist(), (3 * micro.coefficients).tolist(), strict=True))
    assert weights == pytest.approx({5: 12.182494, 6: 1.0, 7: 0.082085}, rel=1e-6)
