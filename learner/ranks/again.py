"""Training again: the steps that a run's journal holds, from the start model on, in a process a rank without Ray.

What a step is made of: the batch with its order and weights, and the run's steps, over which the learning rate falls
(all in the journal); settings, seed, start model and what `trainer.examine` finds of it (as the run had them); and the
order of sums, which is that of the same machine with as many threads and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from learner import checkpoint, journal
from learner.batches.batch import prepare
from learner.ranks.rank import RankSpec
from protocols.errors import SettingError


@dataclass(frozen=True, slots=True)
class Made:
    """What training a step again made; both digests are "" where the step published no weights."""

    step: int
    version: int
    recorded: str
    made: str

    @property
    def equal(self) -> bool:
        return self.recorded == self.made


def train_again(spec: RankSpec, master: tuple[str, int], to: int, out: Path | None) -> Iterator[Made]:
    """Trains steps 1 to `to`, all of which the journal holds; yields one after another on every rank, with digests on
    rank 0. Then `out`, if any, becomes a folder with the model, or the adapter, of that step.

    Raises RedraftError where a step cannot be read, SettingError where the model cannot be loaded or a step had other
    ranks.
    """
    import torch

    from learner.ranks.trainer import Trainer, join_ranks

    settings = spec.settings
    torch.manual_seed(spec.seed + spec.rank)
    if spec.device == "cpu":
        torch.set_num_threads(settings.threads)
    timeout_s = settings.claim_deadline_s
    join_ranks(spec.rank, spec.world, master, spec.device, timeout_s)
    trainer = Trainer(
        settings,
        spec.model_path,
        steps=spec.steps,
        dtype=spec.dtype,
        temperature=spec.temperature,
        device=spec.device,
        lora=spec.lora,
        seed=spec.seed,
    )
    trainer.examine(spec.seed)
    packing = settings.model_copy(update={"packing": trainer.packed})
    for step in range(1, to + 1):
        entry, done = journal.read(spec.run_dir, step), step - 1
        if entry.ranks != spec.world:
            problem = f"step {step} was trained by {entry.ranks} ranks, and the recipe has {spec.world}"
            raise SettingError("--to", problem, f"Choose a step before {step}: other ranks add up in another order")
        trainer.steps = entry.steps
        if settings.rounds is not None and settings.rounds.forgets(done):
            trainer.restart()
        batch = prepare(entry.groups, done, packing, entry.importance, spec.seed)
        trainer.step(batch.micros[spec.rank], done)
        yield Made(step, entry.version, entry.digest, _digest(trainer) if entry.digest else "")
    if out is not None:
        _write(trainer, spec, out)


def _digest(trainer) -> str:
    """That of the weights as they would be published: see `WeightRef.digest`. A collective."""
    from protocols.checksum import sums_of_all

    buffers, found = {} if trainer.adapter is None else trainer.adapter.buffers, [""]

    def keep(live: dict) -> dict:
        found.append(str(sums_of_all((live | buffers).values())))  # here, where sharded weights are whole
        return {}

    trainer.full_state(keep)
    return found[-1]


def _write(trainer, spec: RankSpec, out: Path) -> None:
    """The model, or the adapter, as a checkpoint has it. A collective."""
    state = trainer.full_state()
    if spec.rank:
        return
    if trainer.adapter is not None:
        trainer.adapter.write(out, state)
    else:
        checkpoint.write_folder(out, spec.model_path, trainer.training.policy.model.config, state)
