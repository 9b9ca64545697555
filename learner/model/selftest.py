"""The self-test: before anything is played or trained, that the loaded model computes here what it computes elsewhere.

On the run's weights, in its type, on all ranks at once, with two random sequences a and b that fill a row:

    neighbour  a b -> a' b    packed, another neighbour in the row must not move b
    alone      a b =  b       packed, b has the log-probs that it has alone
    causal     a b -> a b'    what follows must not move a, so padding at the right does not
    head       policy = model the log-probs of the loss are those of the model's own forward, head included
    random     train = eval   a training pass is one that the sampler computes, too: no dropout, no jitter
    saved      saved = live   what is saved and published gives the same log-probs in a fresh model

Sound ways to compute the same differ by rounding, which learner.model.noise measures on the same tokens. What is
compared is the median over tokens: single ones are ill-conditioned, and these faults move most of them. Only a
neighbour may reach no further than the first tokens behind it, so there the largest difference counts; it costs nothing
to be strict, since a sound model does not move at all. Where packing fails, each sequence gets a row of its own; all
else is refused. What begins only beyond WIDTH tokens is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from learner.model.head import linear_of
from learner.model.noise import LAST_DIGIT, rounding
from learner.model.policy import Policy
from protocols.errors import RedraftError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH = 64  # tokens of the row that is looked at
SLACK = 2.0  # two computations that each round differ by sqrt(2) times what one does; the rest is for medians of few
PACKING = ("neighbour", "alone")
WRONG = {
    "causal": "later tokens change the log-probs of earlier ones",
    "head": "the log-probs of the loss are not those of the model's own forward pass",
    "random": "two passes over the same tokens differ, one as in training and one as in sampling",
    "saved": "what would be saved and published does not give the log-probs of the live model",
}
CURES = {
    "causal": "Try learner.attention: eager, or choose a causal model",
    "head": "Try learner.attention: eager, or choose another model: this one's head is not known here",
    "random": "Set what is random in its config.json (dropout, jitter) to 0, or choose another model",
    "saved": "Save the model anew with `save_pretrained` of this transformers version, or choose another model",
}
CHECKS = (*PACKING, *WRONG)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of log-probs in nats, and what of it rounding explains."""

    found: float
    explained: float

    @property
    def sound(self) -> bool:
        return isfinite(self.explained) and self.found <= SLACK * self.explained


def sequences(config, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a and b, and another of each, int64[WIDTH * 2/3] and [WIDTH * 1/3]: random ids that mean nothing to the model."""
    text = config.get_text_config()
    named = [value for part in (config, text) for key, value in vars(part).items() if key.endswith("token_id")]
    special = {item for value in named for item in (value if isinstance(value, list) else [value])}
    ordinary = np.array([item for item in range(text.vocab_size) if item not in special])
    random = np.random.default_rng(seed)
    lengths = WIDTH - WIDTH // 3, WIDTH // 3
    a, b, other_a, other_b = (torch.from_numpy(random.choice(ordinary, length)) for length in lengths * 2)
    return a, b, other_a, other_b


class Examiner:
    """Compares passes of one policy. All ranks make the same passes, for under ZeRO 3 each is a collective."""

    def __init__(self, policy: Policy, seed: int, rows: int = 2):
        """`rows` of a packed micro-batch: 2, or 1 where it has only one."""
        self._policy, self._rows = policy, min(rows, 2)
        self._a, self._b, self._other_a, self._other_b = sequences(policy.model.config, seed)
        self._whole = torch.cat([self._a, self._b])
        self._device = next(policy.parameters()).device
        self.live = self._row(self._whole)
        """Log-probs of one sequence in a row of its own, float32[WIDTH - 1]."""
        if not self.live.isfinite().all():
            problem = f"{_name(policy)} gives log-probs that are not finite in {_type(policy)}"
            raise SettingError("model.path", problem, "Look at its weights, or set model.dtype to float32")
        self._floor = LAST_DIGIT[self._device.type] * float(self.live.abs().mean())
        with rounding(policy.model):
            self._noise = max(_median(self._row(self._whole), self.live), self._floor)

    def neighbour(self) -> Difference:
        """The largest, of a packed sequence with one neighbour and with another; it may be no more than the median that
        rounding explains, for in bfloat16 the largest one hides leaks of several nats."""
        first, other = self._packed(self._a, self._b), self._packed(self._other_a, self._b)
        return Difference(_largest(first, other), self._noise)

    def alone(self) -> Difference:
        """Of a sequence behind another one, and in a row of its own."""
        return Difference(_median(self._packed(self._a, self._b)[0], self._row(self._b)), self._noise)

    def causal(self) -> Difference:
        changed = self._row(torch.cat([self._a, self._other_b]))
        before = len(self._a) - 1
        return Difference(_median(changed[:before], self.live[:before]), self._noise)

    def head(self) -> Difference:
        """The two ways share the hidden states, so only the head's rounding explains anything."""
        with rounding(linear_of(self._policy.model)):
            noise = max(_median(self._row(self._whole), self.live), self._floor)
        row = self._whole.to(self._device)
        logits = self._policy.model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        own = logits.log_softmax(-1).gather(-1, row[1:, None]).squeeze(-1)
        return Difference(_median(own, self.live), noise)

    def random(self) -> Difference:
        self._policy.train()
        trained = self._row(self._whole)
        self._policy.eval()
        return Difference(_median(trained, self.live), self._noise)

    def saved(self, fresh: PreTrainedModel) -> Difference:
        """`fresh` is a model on the CPU of what would be saved."""
        policy = Policy(fresh.eval(), head=self._policy.head)
        positions = torch.arange(len(self._whole))
        logprobs, _ = policy(self._whole[None], positions[None], positions[:-1], self._whole[1:])
        return Difference(_median(logprobs, self.live.cpu()), self._noise)

    def _packed(self, a: Tensor, b: Tensor) -> Tensor:
        """float32[rows, len(b) - 1]: of b behind a and, in a second row, before it."""
        orders = [(a, b), (b, a)][: self._rows]
        tokens = torch.stack([torch.cat(order) for order in orders])
        positions = torch.stack([torch.cat([torch.arange(len(part)) for part in order]) for order in orders])
        starts = torch.tensor([len(a), len(a) + len(b)])[: self._rows]
        picks = (starts[:, None] + torch.arange(len(b) - 1)).flatten()
        return self._score(True, tokens, positions, picks, b[1:].repeat(len(orders))).view(len(orders), -1)

    def _row(self, tokens: Tensor) -> Tensor:
        """float32[S - 1]: of one sequence in a row of its own."""
        positions = torch.arange(len(tokens))
        return self._score(False, tokens[None], positions[None], positions[:-1], tokens[1:])

    def _score(self, packed: bool, *inputs: Tensor) -> Tensor:
        self._policy.packed = packed
        return self._policy(*(part.to(self._device) for part in inputs))[0]


@torch.no_grad()
def examine(
    policy: Policy, load: Callable[[], PreTrainedModel | None], seed: int, packing: bool, rows: int
) -> np.ndarray:
    """float64[CHECKS, 2]: what each check found and what rounding explains; 0 where it was not made (`packing` false,
    or `load`, which makes a fresh model of what would be saved, returned None: only one rank has it).

    Raises SettingError where the model cannot be asked at all.
    """
    results = np.zeros((len(CHECKS), 2))
    with _asked_as_it_samples(policy):
        try:
            examiner = Examiner(policy, seed, rows)
            checks = {name: getattr(examiner, name) for name in ("causal", "head", "random")}
            found = {name: check() for name, check in checks.items()}
            if (fresh := load()) is not None:
                found["saved"] = examiner.saved(fresh)
        except RedraftError:
            raise
        except Exception as error:  # a family's code stumbles over what every other takes
            said = " ".join(str(error).split())
            problem = f"{_name(policy)} cannot be asked for log-probs ({type(error).__name__}: {said})"
            raise SettingError(
                "model.path", problem, "Try learner.attention: eager, or choose another model"
            ) from error
        if packing:
            found |= _packing(examiner)
    for name, difference in found.items():
        results[CHECKS.index(name)] = difference.found, difference.explained
    return results


def _packing(examiner: Examiner) -> dict[str, Difference]:
    try:
        return {name: getattr(examiner, name)() for name in PACKING}
    except Exception:  # some families' code knows one sequence a row only
        return dict.fromkeys(PACKING, Difference(np.inf, 0.0))


def judge(policy: Policy, results: np.ndarray) -> bool:
    """Whether several sequences may share a row, by what `examine` returned.

    Raises SettingError, naming what differs and by how much, for all else that is not as it should be.
    """
    found = {name: Difference(*map(float, row)) for name, row in zip(CHECKS, results, strict=True)}
    for name in WRONG:
        difference = found[name]
        if not difference.sound:
            by = f"by {difference.found:.2g} nats in the median, where rounding explains {difference.explained:.2g}"
            raise SettingError("model.path", f"{_name(policy)} fails the self-test: {WRONG[name]}, {by}", CURES[name])
    return all(found[name].sound for name in PACKING)


@contextmanager
def _asked_as_it_samples(policy: Policy) -> Iterator[None]:
    before = policy.temperature, policy.packed, policy.training
    policy.temperature = 1.0
    policy.eval()
    try:
        yield
    finally:
        policy.temperature, policy.packed = before[:2]
        policy.train(before[2])


def _median(one: Tensor, other: Tensor) -> float:
    """Median difference; infinite where either is not a number."""
    return float(torch.nan_to_num((one - other).abs().double(), nan=torch.inf).median())


def _largest(one: Tensor, other: Tensor) -> float:
    return float(torch.nan_to_num((one - other).abs().double(), nan=torch.inf).max())


def _type(policy: Policy) -> str:
    return str(next(policy.parameters()).dtype).removeprefix("torch.")


def _name(policy: Policy) -> str:
    return f"a model of type {policy.model.config.model_type}"
