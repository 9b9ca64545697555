"""Publishing: gathered weights as one blob in the object store, with what an actor needs to check its copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from learner.checkpoint import PUBLISHED
from learner.progress import Progress
from learner.proof import Proof
from learner.timing import timed
from protocols import metrics
from protocols.checksum import element_checksum
from protocols.errors import RedraftError
from protocols.weights import TRIAL, Probe, WeightRef

if TYPE_CHECKING:
    from learner.lora import Adapter
    from learner.trainer import Trainer

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
        self._refs: list[WeightRef] = []  # the newest version that was announced

    def trial(self, seed: int) -> None:
        """Perturbed weights, which an actor must follow before it may play: no rounding hides an old head.

        Raises SettingError where rounding drowns every perturbation, RedraftError where the weights cannot be measured.
        """
        state, _ = self._gather(self._tokens)
        try:
            state, probe = self.proof.trial(state, seed)
        except RuntimeError as error:  # torch's, of an operation that the wider type does not have, or of memory
            raise RedraftError(f"learner: the noise of the weights cannot be measured: {error}") from error
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
        import ray

        if self._progress.published != self._progress.step:
            (folder / PUBLISHED).write_bytes(ray.get(self._refs[-1].blob))

    def _announce(self, state: dict[str, Tensor], probe: Probe) -> None:
        ref = publish(state, self._progress.version, probe, self._trainer.adapter)
        self._refs[:] = [ref]
        metrics.PUBLISHED.set(ref.version)
        self._controller.announce.remote(ref)


def publish(state: dict[str, Tensor], version: int, probe: Probe, adapter: Adapter | None = None) -> WeightRef:
    """Puts the weights, or those of the adapter, into Ray's object store as safetensors bytes (uint8[size]) and returns
    their reference."""
    import ray
    from blake3 import blake3

    blob = save(state) if adapter is None else save(state | adapter.buffers, adapter.metadata)
    return WeightRef(
        version=version,
        digest=blake3(blob).hexdigest(),
        size_bytes=len(blob),
        blob=ray.put(np.frombuffer(blob, np.uint8)),
        probe=probe,
        elements=element_checksum(bits_of(state.values())) if adapter is None else adapter.rest,
    )


def bits_of(tensors: Iterable[Tensor]) -> Iterable[np.ndarray]:
    """The tensors' bits as numpy arrays, which know no bfloat16; elements of 8 bytes as two of 4."""
    words = {1: torch.uint8, 2: torch.uint16}
    for tensor in tensors:
        yield tensor.flatten().view(words.get(tensor.element_size(), torch.uint32)).numpy()


def probe_tokens(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """The run's fixed sequence, whose log-probs tell whether an engine computes with the weights it was given."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
