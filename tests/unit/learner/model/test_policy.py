"""Log-probs: packed equal unpacked, chunked equal whole, and the gradient does not depend on how work was split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.model import head
from learner.model import policy as logprobs
from learner.model.head import Float32Linear, Shape
from learner.model.policy import Policy
from learner.objectives import STATS, loss_of, make, report
from protocols.errors import SettingError
from protocols.turns import TEMPERATURE, Group, Role, Turn

VOCABULARY = 40


def tiny(attention: str = "sdpa") -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    config.initializer_range = 0.3  # far from uniform, so that a wrong mask shows
    return Qwen2ForCausalLM._from_config(config, attn_implementation=attention)


def groups(count: int, seed: int = 0) -> list[Group]:
    """Two dialogues of two turns a group, of random lengths."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        name = number.to_bytes(16, "big")
        turns = []
        for place in range(4):
            prompt, response = (random.integers(0, VOCABULARY, random.integers(1, 9)) for _ in range(2))
            logprobs = -random.exponential(size=len(response))
            arrays = (prompt.astype(np.int32), response.astype(np.int32), logprobs.astype(np.float32))
            where = {"episode": place // 2, "index": place % 2, "reward": float(random.integers(0, 2))}
            parent = place - 1 if place % 2 else -1
            turns.append(Turn(name, 1, place, parent, *arrays, ((0, 0),), Role.ATTEMPT, **where))
        made.append(Group(name, 1, tuple(turns)))
    return made


def settings(**values) -> LearnerSettings:
    return LearnerSettings(**({"row_tokens": 48, "micro_tokens": 96, "credit": {"name": "raw"}} | values))


def run(policy: Policy, micro) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("tokens", "positions", "picks", "targets")
    arrays = [torch.from_numpy(getattr(micro, name)) for name in names]
    return policy(*arrays, micro.chunks, torch.from_numpy(micro.temperatures))


def gradient(policy: Policy, choice: LearnerSettings, made: list[Group]) -> tuple[torch.Tensor, np.ndarray]:
    """The batch's gradient as one vector, and the summed stats, over the micro-batches of all ranks."""
    policy.zero_grad()
    total = np.zeros(len(STATS))
    for micro in (micro for rank in prepare(made, 0, choice).micros for micro in rank):
        tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        loss, stats = loss_of(make(choice.objective), *run(policy, micro), tensors)
        loss.backward()
        total += stats.numpy()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]), total


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_logprobs_equal_those_of_each_sequence_alone(attention):
    model = tiny(attention)
    policy = Policy(model, packed=True)
    (micros,) = prepare(groups(4), 0, settings(objective={"name": "grpo", "kl": 0.1}, micro_tokens=96)).micros
    worst = 0.0
    for micro in micros:
        with torch.no_grad():
            packed, entropy = run(policy, micro)
        width = micro.tokens.shape[1]
        for row in range(len(micro.tokens)):
            starts = np.flatnonzero(micro.positions[row] == 0)
            for start, end in zip(starts, [*starts[1:], width], strict=True):
                mine = (micro.picks >= row * width + start) & (micro.picks < row * width + end)
                if not mine.any():
                    continue  # padding
                with torch.no_grad():
                    logits = model(torch.from_numpy(micro.tokens[row : row + 1, start:end])).logits[0].double()
                alone = logits.log_softmax(-1)[micro.picks[mine] - row * width - start]
                chosen = alone.gather(-1, torch.from_numpy(micro.targets[mine])[:, None]).squeeze(-1)
                worst = max(worst, (packed[mine] - chosen).abs().max().item())
                torch.testing.assert_close(
                    entropy[mine], -(alone.exp() * alone).sum(-1), check_dtype=False, atol=1e-4, rtol=0
                )
    print(f"{attention}: packed and alone differ by at most {worst:.1e}")
    assert worst < 1e-4


def test_logprobs_their_entropy_and_gradient_are_those_of_a_plain_log_softmax(monkeypatch):
    monkeypatch.setattr(head, "SLICE", 3 * VOCABULARY)  # three rows at a time, and a rest
    torch.manual_seed(1)
    logits, targets, shares = 3 * torch.randn(7, VOCABULARY), torch.randint(VOCABULARY, (7,)), torch.randn(7)
    ours, plain = (logits.clone().requires_grad_() for _ in range(2))
    temperatures = torch.tensor([0.7, 1.0, 0.3, 2.0, 0.7, 0.01, 1.0])
    chosen, entropy = logprobs.Chosen.apply(ours, targets, temperatures, Shape())
    whole = (plain / temperatures[:, None]).log_softmax(-1)
    torch.testing.assert_close(chosen, whole[range(7), targets])
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(-1))
    (shares @ chosen).backward()
    (shares @ whole[range(7), targets]).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_a_turn_is_scored_at_its_own_temperature_and_any_other_at_the_recipes():
    made, own = groups(4), [0.25, 0.0, 1.5, 0.0]
    for group in made:
        for turn, temperature in zip(group.turns, own, strict=True):
            turn.extra.update({TEMPERATURE: temperature} if temperature else {})
    model, recipe_s = tiny(), 0.8
    (micros,) = prepare(made, 0, settings(logprob_chunk=7)).micros
    seen = set()
    for micro in micros:
        found, _ = run(Policy(model, recipe_s, packed=True), micro)
        one_by_one = Policy(model, 1.0, packed=True)
        for place, temperature in enumerate(micro.temperatures):
            one_by_one.temperature = temperature or recipe_s
            alone, _ = run(one_by_one, replace(micro, temperatures=0 * micro.temperatures))
            torch.testing.assert_close(found[place], alone[place])
        seen |= set(micro.temperatures.tolist())
    assert seen == {0.0, 0.25, 1.5}


def test_chunked_logprobs_and_their_gradient_equal_the_whole_ones():
    policy, made = Policy(tiny()), groups(4)
    bonus = {"name": "grpo", "entropy": 0.3}
    whole, _ = gradient(policy, settings(objective=bonus), made)
    pieces, _ = gradient(policy, settings(objective=bonus, logprob_chunk=5), made)
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "grpo"},
        {"name": "grpo", "correction": "none", "entropy": 0.3},
        {"name": "awr", "temperature": 0.5},
        {"name": "sft"},
    ],
    ids=["decoupled", "clipped, with an entropy bonus", "awr", "sft"],
)
def test_the_gradient_does_not_depend_on_micro_batches_or_ranks(objective):
    policy, made = Policy(tiny()), groups(8)
    one, stats = gradient(policy, settings(objective=objective, row_tokens=1024, micro_tokens=1024), made)
    for split in ({"micro_tokens": 48}, {"micro_tokens": 48, "ranks": 2}, {"ranks": 3}, {"packing": False}):
        other, split_stats = gradient(policy, settings(objective=objective, **split), made)
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
        for key, value in report(stats).to_json().items():
            if key != "mismatch_max":  # a maximum does not add up
                assert report(split_stats).to_json()[key] == (
                    value if value is None else pytest.approx(value, rel=1e-5)
                ), key


def test_logprobs_are_those_of_sampling_at_the_temperature():
    model = tiny()
    tokens = torch.arange(10)[None]
    places = torch.arange(10)
    got, _ = Policy(model, temperature=2.0)(tokens, places[None], places[:-1], tokens[0, 1:])
    expected = (model(tokens).logits[0, :-1] / 2).log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bonus", [None, 0.4], ids=["log-probs alone", "with an entropy bonus"])
@pytest.mark.parametrize("shape", [Shape(scale=0.3), Shape(softcap=2.0), Shape(scale=1.7, softcap=3.0)], ids=str)
def test_scaled_and_capped_logits_have_the_gradient_of_plain_autograd_in_float64(shape, bonus, monkeypatch):
    monkeypatch.setattr(head, "SLICE", 3 * VOCABULARY)
    torch.manual_seed(2)
    linear, targets, shares = 3 * torch.randn(7, VOCABULARY), torch.randint(VOCABULARY, (7,)), torch.randn(7)
    ours, plain = linear.clone().requires_grad_(), linear.double().requires_grad_()
    chosen, entropy = logprobs.Chosen.apply(ours, targets, torch.full((7,), 0.7), shape)
    logits = plain * shape.scale
    logits = logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)
    whole = (logits / 0.7).log_softmax(-1)
    torch.testing.assert_close(chosen, whole[range(7), targets], check_dtype=False)
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(-1), check_dtype=False)
    ((shares @ chosen) if bonus is None else (shares @ chosen - bonus * (shares @ entropy))).backward()
    expected = shares.double() @ whole[range(7), targets]
    (expected + (bonus or 0.0) * (shares.double() @ (whole.exp() * whole).sum(-1))).backward()
    torch.testing.assert_close(ours.grad, plain.grad, check_dtype=False)


@pytest.mark.parametrize("shape", [Shape(), Shape(softcap=5.0)], ids=str)
def test_tokens_that_cannot_be_sampled_leave_entropy_and_gradient_finite(shape):
    linear = torch.randn(3, VOCABULARY)
    linear[:, 5:] = -torch.inf
    ours = linear.clone().requires_grad_()
    chosen, entropy = logprobs.Chosen.apply(ours, torch.tensor([0, 1, 2]), torch.full((3,), 0.1), shape)
    (chosen.sum() + 9 * entropy.sum()).backward()
    assert chosen.isfinite().all() and entropy.isfinite().all() and ours.grad.isfinite().all()
    if shape.softcap is None:
        few = (linear[:, :5] / 0.1).log_softmax(-1)
        torch.testing.assert_close(entropy, -(few.exp() * few).sum(-1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_float32_head_is_the_float32_product_of_the_models_own_numbers(bias, monkeypatch):
    monkeypatch.setattr(head, "PIECE", 3 * 16)  # three ids at a time, and a rest
    torch.manual_seed(3)
    values = torch.randn(5, 16), torch.randn(VOCABULARY, 16), torch.randn(VOCABULARY)
    ours = [value.bfloat16().requires_grad_() for value in values]
    plain = [value.bfloat16().float().requires_grad_() for value in values]
    logits = Float32Linear.apply(*ours[:2], ours[2] if bias else None)
    expected = torch.nn.functional.linear(*plain[:2], plain[2] if bias else None)
    torch.testing.assert_close(logits, expected)
    slope = torch.randn_like(expected)
    logits.backward(slope)
    expected.backward(slope)
    for mine, theirs in zip(ours[: 2 + bias], plain[: 2 + bias], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.bfloat16())


def test_a_float32_head_spares_the_rounding_of_logits():
    model = tiny().bfloat16()
    exact = Policy(tiny().bfloat16(), head="float32")
    tokens, places = torch.arange(10)[None], torch.arange(10)
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state[0, :-1].double()
        logits = hidden @ model.lm_head.weight.double().T
        expected = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
        got, rounded = (
            policy(tokens, places[None], places[:-1], tokens[0, 1:])[0] for policy in (exact, Policy(model))
        )
    torch.testing.assert_close(got, expected, check_dtype=False)
    assert (rounded - expected).abs().max() > 100 * (got - expected).abs().max()


def test_a_float32_head_that_is_not_linear_is_refused():
    model = tiny()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(SettingError, match="learner.head: float32 needs a linear head"):
        Policy(model, head="float32")


def test_rows_of_several_sequences_are_taken_apart_until_the_model_was_seen_to_keep_them_apart():
    tokens = torch.tensor([[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 10, 11]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    rows, places, picks = logprobs.apart(tokens, positions, torch.tensor([1, 3, 10]))
    assert rows.tolist() == [[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0], [0] * 6, [6, 7, 8, 9, 10, 11]]
    assert (places == torch.arange(6)).all()
    assert rows.flatten()[picks].tolist() == [2, 4, 10]
