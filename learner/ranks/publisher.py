"""What rank 0 publishes: each version with its proof, announced to the controller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from learner.checkpoint import PUBLISHED
from learner.ranks.progress import Progress
from learner.ranks.timing import timed
from learner.ranks.trainer import Keep, Trainer, copied
from learner.weights.collective import Broadcasts
from learner.weights.proof import Proof
from learner.weights.publish import Versions
from protocols import metrics
from protocols.weights import TRIAL, Probe, version_of

Gather = Callable[[tuple[int, ...], Keep], tuple[dict[str, Tensor], tuple[float, ...]]]


class Publisher:
    """Rank 0's: publishes versions and announces them to the controller, each with its proof.

    `gather(tokens, keep)` is a collective that returns the state as `keep` keeps it and its log-probs of `tokens`;
    `host` is the address at which other nodes reach this one. With `rests` engines on the GPU take memory again when
    they hear of a version.
    """

    def __init__(
        self,
        trainer: Trainer,
        gather: Gather,
        controller: Any,
        progress: Progress,
        tokens: tuple[int, ...],
        versions: Versions,
        host: str,
        rests: bool = False,
    ):
        self._trainer, self._gather, self._controller = trainer, gather, controller
        self._rests = rests
        self.announced: Any = None
        """What the controller answers to the last announcement, as Ray's reference: whether that version is
        evaluated."""
        self._progress, self._tokens, self.versions = progress, tokens, versions
        self.digest = ""  # of the version that was published last
        self.broadcasts = Broadcasts(versions, host, trainer.device)
        made = (trainer.model_of, trainer.perturbed, tokens, trainer.vocabulary, trainer.device)
        self.proof = Proof(*made)

    def trial(self, seed: int) -> None:
        """Perturbed weights, which an actor must follow before it may play: no rounding hides an old head.

        Raises SettingError where rounding drowns every perturbation, RedraftError where the weights cannot be measured.
        """
        state, _ = self._gather(self._tokens, copied)
        state, probe = self.proof.trial(state, seed)
        self._write(state, TRIAL)
        self._controller.announce_trial.remote(self.versions.ref(TRIAL, probe))

    def publish(self, seconds: dict[str, float]) -> None:
        """The weights that were trained last."""
        with timed(seconds, "gather"):
            step, version = self._progress.step, version_of(self._progress.incarnation, self._progress.step)
            state, logprobs = self._gather(self._tokens, lambda live: self._write(live, version))
        with timed(seconds, "publish"):
            self._progress.published = step
            self._announce(self.proof.probe(state, logprobs))

    def publish_saved(self, folder: Path) -> None:
        """Amid a round that is resumed: the weights with which actors played it, as a checkpoint kept them."""
        state = self._write(load_file(folder / PUBLISHED), self._progress.version)
        self._announce(self.proof.probe_of(state))

    def keep(self, folder: Path) -> None:
        """Writes the newest version into a checkpoint's folder, where it is not that of the checkpoint's step."""
        if self._progress.published != self._progress.step:
            self.versions.save(self._progress.version, folder / PUBLISHED)

    def _write(self, state: dict[str, Tensor], version: int) -> dict[str, Tensor]:
        """Tensors as they are kept for actors, without what goes with an adapter."""
        adapter = self._trainer.adapter
        if adapter is None:
            return self.versions.write(state, version)
        kept = self.versions.write(state | adapter.buffers, version, adapter.metadata, adapter.rest)
        return {name: tensor for name, tensor in kept.items() if name in state}

    def _announce(self, probe: Probe) -> None:
        version = self._progress.version
        metrics.PUBLISHED.set(version)
        if self._rests:
            self._trainer.give_back()
        ref = self.versions.ref(version, probe)
        self.digest = ref.digest
        self.announced = self._controller.announce.remote(ref)
