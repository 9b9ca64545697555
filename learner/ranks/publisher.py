"""What rank 0 publishes: each version with its proof, announced to the controller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import ray
from safetensors.torch import load_file
from torch import Tensor

from learner.checkpoint import PUBLISHED
from learner.ranks.progress import Progress
from learner.ranks.timing import timed
from learner.ranks.trainer import Trainer
from learner.weights.proof import Proof
from learner.weights.publish import publish
from protocols import metrics
from protocols.weights import TRIAL, Probe, WeightRef

Gather = Callable[[tuple[int, ...]], tuple[dict[str, Tensor], tuple[float, ...]]]


class Publisher:
    """Rank 0's: publishes versions and announces them to the controller, each with its proof.

    `gather(tokens)` is a collective that returns the state as it is published and its log-probs of `tokens`.
    """

    def __init__(self, trainer: Trainer, gather: Gather, controller, progress: Progress, tokens: tuple[int, ...]):
        self._trainer, self._gather, self._controller = trainer, gather, controller
        self._progress, self._tokens = progress, tokens
        made = (trainer.model_of, trainer.perturbed, tokens, trainer.vocabulary, trainer.device)
        self.proof = Proof(*made)
        self._newest: deque[WeightRef] = deque(maxlen=1)  # that was announced

    def trial(self, seed: int) -> None:
        """Perturbed weights, which an actor must follow before it may play: no rounding hides an old head.

        Raises SettingError where rounding drowns every perturbation, RedraftError where the weights cannot be measured.
        """
        state, _ = self._gather(self._tokens)
        state, probe = self.proof.trial(state, seed)
        self._controller.announce_trial.remote(publish(state, TRIAL, probe, self._trainer.adapter))

    def publish(self, seconds: dict[str, float]) -> None:
        """The weights that were trained last."""
        with timed(seconds, "gather"):
            state, logprobs = self._gather(self._tokens)
        with timed(seconds, "publish"):
            self._progress.published = self._progress.step
            self._announce(state, self.proof.probe(state, logprobs))

    def publish_saved(self, folder: Path) -> None:
        """Amid a round that is resumed: the weights with which actors played it, as a checkpoint kept them."""
        state = load_file(folder / PUBLISHED)
        self._announce(state, self.proof.probe_of(state))

    def keep(self, folder: Path) -> None:
        """Writes the newest version into a checkpoint's folder, where it is not that of the checkpoint's step."""
        if self._progress.published != self._progress.step:
            (folder / PUBLISHED).write_bytes(ray.get(self._newest[0].blob))

    def _announce(self, state: dict[str, Tensor], probe: Probe) -> None:
        ref = publish(state, self._progress.version, probe, self._trainer.adapter)
        self._newest.append(ref)
        metrics.PUBLISHED.set(ref.version)
        self._controller.announce.remote(ref)
