"""The proof of weights: how far rounding alone moves the log-probs of the probe, and so which difference convicts.

An engine that computes with a version rounds at other places than the learner, so the two never agree to the last bit.
By how much they may differ depends on the weights: their depth, the size of their logits, and on the probe's tokens. So
the learner measures it: the probe in the run's type against the same weights computed in the next wider one. That is
the *noise*; a version carries the *limit* that follows from it.

    noise      median over the probe's tokens of |log-prob in the run's type - log-prob in the wider type|
    limit      LIMIT x noise
    trial      weights perturbed so that the probe's log-probs change by at least ENOUGH x the noise, measured on them

Medians, since a few tokens are ill-conditioned: of a model of 135M in bfloat16 single tokens were off by up to ninety
times the median, in the learner as in vLLM, and would rule a mean.

Why no false alarm: two computations of one noise differ by about sqrt(2) times it. For the median of 31 tokens to pass
6 times it, 16 of them have to lie where, with bell-shaped errors, one in 230 does. Tokens of one sequence are not
independent: what rounds the first moves those after it, so that whole sequences are two or three times as noisy as
others; noise is therefore that of the probe's own sequence, and not less than the median over OTHERS more, in case it
is quiet by luck. Seen on 16 sequences of such a model at five strengths, against vLLM: at most 2.4 times so measured
noise, and 5.1 times the noise of all. Why nothing gets through: a trial's change is then at least ENOUGH / LIMIT = 5
limits, and a part of the weights that was not loaded shows unless it makes less than a fifth of the change.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from learner.model.noise import LAST_DIGIT
from learner.model.policy import Policy
from protocols import metrics
from protocols.errors import RedraftError, SettingError
from protocols.weights import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("redraft.learner")

WIDER = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
LIMIT = 6.0
ENOUGH = 30.0
OTHERS = 7  # sequences beside the probe's
STRENGTHS = (1 / 8, 1 / 4, 1 / 16, 1 / 2, 1 / 32, 1.0)  # relative changes of the weights, the likeliest first
SHARE = 0.01  # of a run's time that measuring again may take

Load = Callable[
    [dict[str, Tensor]], "PreTrainedModel"
]  # a state as it is published, to a model on the CPU in the run's type
Perturb = Callable[[dict[str, Tensor], float, int], dict[str, Tensor]]  # state, strength, seed


@dataclass(frozen=True, slots=True)
class Noise:
    """How far rounding moves the median log-prob of the probe; `exact` are the wider type's, float64[rows, tokens - 1],
    and `rounded` those of the run's type."""

    size: float
    exact_RT: np.ndarray
    rounded_RT: np.ndarray

    @property
    def limit(self) -> float:
        return LIMIT * self.size


class Proof:
    """Rank 0's: makes the trial, and the probe and limit of each version.

    Training moves the noise, so it is measured again with a version whenever that has become cheap: when the last
    measurement took less than SHARE of the time since. A small model is measured every few versions, one of billions of
    parameters every quarter of an hour; in between the limit stands, three times as wide as what was ever seen.

    A measurement needs the published state on the CPU, which is there anyway, one model made of it, and on the device
    one layer at a time in the wider type: never a second copy of the weights in it.
    """

    def __init__(self, load: Load, perturb: Perturb, tokens: tuple[int, ...], vocabulary: int, device: str = "cpu"):
        random = np.random.default_rng(tokens)
        others = random.integers(0, vocabulary, (OTHERS, len(tokens)))
        self._rows_RT = torch.from_numpy(np.concatenate(([tokens], others)))
        self._load, self._perturb, self._tokens, self._device = load, perturb, tokens, device
        self._ended, self._took = 0.0, 0.0
        self.noise = 0.0  # as measured last

    def measure(self, state: dict[str, Tensor]) -> Noise:
        """The noise of these weights; later versions get its limit.

        Raises SettingError where the model cannot be computed in the wider type, RedraftError where memory runs out.
        """
        began = time.monotonic()
        noise = self._noise(state)
        self._ended = time.monotonic()
        self._took, self.noise = self._ended - began, noise.size
        metrics.PROBE_NOISE.set(noise.size)
        return noise

    def probe(self, state: dict[str, Tensor], logprobs: tuple[float, ...]) -> Probe:
        """The probe of a version whose log-probs the learner has computed."""
        if time.monotonic() - self._ended >= self._took / SHARE:
            self.measure(state)
        return Probe(self._tokens, logprobs, LIMIT * self.noise)

    def probe_of(self, state: dict[str, Tensor]) -> Probe:
        """The probe of weights that no rank holds."""
        noise = self.measure(state)
        return Probe(self._tokens, tuple(noise.rounded_RT[0].tolist()), noise.limit)

    def trial(self, state: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], Probe]:
        """Weights perturbed well beyond their noise, and their probe. Measures `state`, too.

        At its peak the CPU holds `state`, one perturbed copy of it and the model that is made of that copy, all in the
        run's type. Of an adapter the states are small, and only the model has the size of the weights.

        Raises SettingError where rounding drowns every perturbation.
        """
        before = self.measure(state)
        tries: list[tuple[float, float, Noise]] = []
        for tried in STRENGTHS:
            noise = self._noise(self._perturb(state, tried, seed))
            tries.append((_median(noise.exact_RT[0] - before.exact_RT[0]) / noise.size, tried, noise))
            if tries[-1][0] >= ENOUGH:
                break
        best, strength, found = max(tries, key=lambda one: one[0])
        if best < 2 * LIMIT:
            raise SettingError(
                "model.dtype",
                f"rounding moves the model's log-probs by {before.size:.2g}, and no perturbation of its weights moves "
                f"them by more than {best:.0f} times their noise: an engine could keep old weights unnoticed",
                "Set it to float32, or raise learner.probe_tokens",
            )
        change = best * found.size
        log.info(
            "proof of weights: noise %.2g, limit %.2g; trial of strength %g: the probe changes by %.2g, noise %.2g, "
            "limit %.2g",
            *(before.size, before.limit, strength, change, found.size, found.limit),
        )
        if best < ENOUGH:
            log.warning("the trial changes the probe by only %.0f times its noise: it sees gross faults only", best)
        perturbed = self._perturb(state, strength, seed)
        return perturbed, Probe(self._tokens, tuple(found.exact_RT[0].tolist()), found.limit)

    def _noise(self, state: dict[str, Tensor]) -> Noise:
        policy = Policy(self._load(state).eval())
        dtype = max(policy.parameters(), key=Tensor.numel).dtype
        try:
            rounded_RT, exact_RT = (scored(policy, self._rows_RT, kind, self._device) for kind in (dtype, WIDER[dtype]))
        except RuntimeError as error:  # torch's, of an operation that the wider type does not have, or of memory
            raise self._not_measured(policy, dtype, error) from error
        error_RT = rounded_RT - exact_RT
        floor = LAST_DIGIT[self._device] * float(np.abs(exact_RT).mean())
        return Noise(max(_median(error_RT[0]), _median(error_RT), floor), exact_RT, rounded_RT)

    def _not_measured(self, policy: Policy, dtype: torch.dtype, error: RuntimeError) -> RedraftError:
        said = " ".join(str(error).split())
        if "allocate" in said:
            problem = f"memory of the {self._device} ran out while the noise of the weights was measured: {said}"
            return RedraftError(f"learner: {problem}")
        kind, wider = policy.model.config.model_type, str(WIDER[dtype]).removeprefix("torch.")
        problem = f"a model of type {kind} cannot be computed in {wider}, by which its rounding is measured"
        cure = "Choose another model" + (", or set model.dtype to bfloat16" if dtype is torch.float32 else "")
        return SettingError("model.path", f"{problem} ({type(error).__name__}: {said})", cure)


def perturbed(state: dict[str, Tensor], strength: float, seed: int) -> dict[str, Tensor]:
    """The weights with every element scaled by a random factor of mean 1 and deviation `strength`."""
    random = torch.Generator().manual_seed(seed)

    def scaled(tensor: Tensor) -> Tensor:
        factor = 1 + strength * torch.randn(tensor.shape, generator=random)
        return (tensor.float() * factor).to(tensor.dtype) if tensor.is_floating_point() else tensor

    return {name: scaled(tensor) for name, tensor in state.items()}


@torch.no_grad()
def scored(policy: Policy, rows_RT: Tensor, dtype: torch.dtype, device: str) -> np.ndarray:
    """Log-probs of tokens 1.. of each row, float64[R, T - 1], by a policy that lies on the CPU, computed in `dtype`."""
    policy.model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    rows_RT = rows_RT.to(device)
    count, length = rows_RT.shape
    positions_RT = torch.arange(length, device=device).expand(count, length)
    picks_N = torch.arange(count * length, device=device).view(count, length)[:, :-1].flatten()
    with computing_in(policy.model, dtype, device):
        logprobs_N, _ = policy(rows_RT, positions_RT, picks_N, rows_RT[:, 1:].flatten())
    return logprobs_N.double().view(count, length - 1).cpu().numpy()


@contextlib.contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype, device: str) -> Iterator[None]:
    """Inside, each part of the model is on `device` and in `dtype` while it computes, else as it was."""
    native = max(model.parameters(), key=Tensor.numel).dtype
    handles = []
    for part, tensors in _parts(model):
        swap = _Swap(tensors, native, dtype, device)
        handles.append(part.register_forward_pre_hook(swap.begin))
        handles.append(part.register_forward_hook(swap.end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Modules and the tensors that they need at one time: a layer all of its own, since its code may use what belongs
    to a module within it; what is no layer only what it holds itself."""
    yield module, [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for child in module.children():
        if isinstance(module, nn.ModuleList):
            yield child, [*child.parameters(), *child.buffers()]
        else:
            yield from _parts(child)


class _Swap:
    """Puts wider numbers into a module's tensors for the time of its forward pass."""

    def __init__(self, tensors: list[Tensor], native: torch.dtype, dtype: torch.dtype, device: str):
        self._tensors, self._native, self._dtype, self._device = tensors, native, dtype, device
        self._kept: list[list[Tensor]] = []

    def begin(self, *_) -> None:
        self._kept.append([tensor.data for tensor in self._tensors])
        for tensor in self._tensors:
            dtype = self._dtype if tensor.dtype == self._native else tensor.dtype
            tensor.data = tensor.data.to(self._device, dtype)

    def end(self, *_) -> None:
        for tensor, data in zip(self._tensors, self._kept.pop(), strict=True):
            tensor.data = data


def _median(values: np.ndarray) -> float:
    return float(np.median(np.abs(values)))
