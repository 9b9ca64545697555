"""A rank of the learner: one training process. Rank 0 leads (see learner.ranks.lead), the others do what it commands.

Rank 0 waits for groups no longer than `claim_deadline_s`, evaluations left out; the others for a command no longer than
that and `COMMAND_GRACE_S`: while it waits it gives one that does nothing.
Without `learner.rounds` each step is a round of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from learner import checkpoint
from learner.bound import Bound
from learner.config import LearnerSettings
from learner.lora_config import LoraSettings
from learner.ranks.progress import Progress
from protocols import heap, log_facts, metrics_page, run_folder, traces
from protocols.errors import RedraftError
from protocols.metrics_page import Listen
from protocols.nvml import Gpu, GpuWatch, watch
from protocols.reports import LearnerEnded, LearnerReady, StepReport
from replay.client import Client
from replay.config import ClientKeys, Endpoints

if TYPE_CHECKING:
    import torch.distributed as dist

    from learner.batches.prefetch import Prefetch
    from learner.ranks.commands import Commands
    from learner.ranks.publisher import Publisher
    from learner.ranks.trainer import Keep, Trainer

log = logging.getLogger("redraft.learner")

COMMAND_GRACE_S = 300.0  # on top of the claim deadline: a checkpoint, a slow step
HEARD_S = 5.0  # longest wait for an answer that says no more than that claims are kept
FAILED, ANNOUNCED = "failed", "announced"


@dataclass(frozen=True, slots=True)
class RankSpec:
    """What one rank is told. `model_path` is the start model also on resume, `steps` those of the whole run,
    `temperature` that of sampling; with `lora` an adapter is trained in place of all weights; with `rests` engines on
    its GPU sleep while it trains; with `evaluated` some versions are in the course of training; `most_stale` is the
    largest staleness bound that a run may find for itself."""

    rank: int
    world: int
    settings: LearnerSettings
    model_path: str
    run_dir: Path
    run_id: str
    seed: int
    shards: tuple[Endpoints, ...]
    keys: ClientKeys | None
    steps: int
    device: str = "cpu"
    dtype: str = "float32"
    temperature: float = 1.0
    lora: LoraSettings | None = None
    rests: bool = False
    evaluated: bool = False
    most_stale: int = 0
    code: Mapping[str, str] = field(default_factory=dict)
    """Sources of the user's own parts, see protocols/own_code.py."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What `setup` makes. `saved` is the checkpoint that this incarnation goes on from, None at the start of a run."""

    trainer: Trainer
    settings: LearnerSettings
    group: dist.ProcessGroup
    commands: Commands
    progress: Progress
    bound: Bound
    saved: Path | None
    resumed: bool


class Rank:
    """`redraft` wraps it as a Ray actor whose methods run in threads: first `setup`, then `announce`, then `run`."""

    def __init__(self, spec: RankSpec):
        from learner.ranks.lead import Waits

        self.spec = spec
        self._parts: Future[Parts] = Future()
        self._publisher: Future[Publisher] = Future()
        self._prefetch: Future[Prefetch] = Future()
        self._waits = Waits()
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._shards, self._clients = spec.shards, []
        self._port: Future[int] = Future()
        self._gpus: GpuWatch | None = None
        self._keep: Keep = dict  # what rank 0 does with gathered weights

    @property
    def parts(self) -> Parts:
        """Raises TimeoutError before `setup` has returned."""
        return self._parts.result(0)

    @property
    def prefetch(self) -> Prefetch:
        """That of rank 0. Raises TimeoutError before it trains."""
        return self._prefetch.result(0)

    def setup(self, master: tuple[str, int], resume: bool) -> LearnerReady:
        """Joins the ranks and loads the model or, on `resume`, the newest checkpoint if there is one.

        Returns where it goes on from. Blocks until all ranks are up.
        Raises SettingError when the checkpoint is another run's, or a part cannot be found.
        """
        with heap.lasting():
            import torch

            from learner.credits import find
            from learner.ranks.commands import Commands, same
            from learner.ranks.trainer import Trainer, join_ranks

        spec = self.spec
        find(spec.settings.credit)
        torch.manual_seed(spec.seed + spec.rank)
        timeout_s = spec.settings.claim_deadline_s + COMMAND_GRACE_S
        group = join_ranks(spec.rank, spec.world, master, spec.device, timeout_s)
        trainer = Trainer(
            spec.settings,
            spec.model_path,
            steps=spec.steps,
            dtype=spec.dtype,
            temperature=spec.temperature,
            device=spec.device,
            lora=spec.lora,
            seed=spec.seed,
        )
        folder = checkpoint.newest(spec.run_dir) if resume and spec.rank == 0 else None
        run_folder.check(spec.run_dir, spec.run_id)
        if spec.rank == 0:
            checkpoint.sweep(spec.run_dir)
        incarnation = checkpoint.next_incarnation(spec.run_dir) if spec.rank == 0 else 0
        folder, incarnation = same((folder, incarnation), group)
        progress, cursor, last, kept = Progress(incarnation), {}, None, {}
        if folder is not None:
            state = checkpoint.read(folder, spec.run_id)
            if spec.rank == 0:
                checkpoint.check(folder)
            trainer.load(folder / checkpoint.TAG)
            progress.step, cursor, kept = state.step, state.cursor, state.bound
            last = StepReport.from_json(state.report) if state.report else None
            progress.published = state.step if state.published is None else state.published
        trainer.examine(spec.seed)
        if folder is not None:
            drawn = folder / f"random-{spec.rank}.pt"
            if drawn.exists():  # there may have been fewer ranks
                torch.set_rng_state(torch.load(drawn, weights_only=True))
        packing = spec.settings.model_copy(update={"packing": trainer.packed})  # batches are packed by what it found
        commands = Commands(group, spec.world, self._obey)
        bound = Bound(spec.settings.max_staleness, spec.most_stale, kept)
        self._parts.set_result(Parts(trainer, packing, group, commands, progress, bound, folder, resume))
        return LearnerReady(progress.step, incarnation, trainer.training.trained, cursor, last, bound=bound.now)

    def announce(self, controller) -> None:
        """Announces the weights that training starts from; on resume, replay first takes back what came after them."""
        parts, spec = self.parts, self.spec
        if spec.rank:
            parts.commands.follow()
            return
        try:
            self._announce_first(controller)
        except RedraftError:
            parts.commands.end(FAILED)  # the others wait for a command: what fails in one, `together` tells all
            raise
        parts.commands.end(ANNOUNCED)

    def _announce_first(self, controller) -> None:
        import ray

        from learner.ranks.publisher import Publisher
        from learner.weights.card import Card
        from learner.weights.publish import Versions, probe_tokens

        parts, spec = self.parts, self.spec
        if parts.resumed:
            client = self._client()
            try:
                client.resume(parts.progress.step)
            finally:
                client.close()
        tokens = probe_tokens(parts.settings.probe_tokens, parts.trainer.vocabulary, spec.seed)
        me = ray.get_runtime_context()
        card = None if spec.device == "cpu" or spec.rests else Card(spec.device)
        versions = Versions(me.get_node_id(), me.current_actor, card)
        host = ray.util.get_node_ip_address()
        publisher = Publisher(
            parts.trainer, self._gather, controller, parts.progress, tokens, versions, host, spec.rests
        )
        self._publisher.set_result(publisher)  # actors of other nodes ask for bytes as soon as they are announced
        publisher.trial(spec.seed)
        if parts.saved is None or parts.progress.published == parts.progress.step:
            publisher.publish({})
        else:
            publisher.publish_saved(parts.saved)

    def run(self, controller, until_step: int) -> LearnerEnded:
        """Trains until `until_step` steps are done or `stop` is called; returns how it ended.

        `controller` is a Ray handle with `announce`, `step_done` and `cursor`. Raises DeadlineError when a batch does
        not come in time, RedraftError when gradients are not finite again and again.
        """
        import torch

        parts = self.parts
        if self.spec.device == "cpu":
            torch.set_num_threads(self.spec.settings.threads)  # holds for the calling thread only
        if self.spec.rank:
            reason = parts.commands.follow()
            return LearnerEnded(parts.progress.step, reason)
        try:
            reason = self._lead(controller, until_step)
        except RedraftError:
            parts.commands.end(FAILED)  # the others wait for a command: what fails in one, `together` tells all
            raise
        parts.commands.end(reason)
        return LearnerEnded(parts.progress.step, reason)

    def stop(self, ended: bool = False) -> None:
        """Makes `run` finish its step, write a checkpoint and return; called from another thread. Where its recipe
        `ended` the run, the last weights are published, also amid a round."""
        if ended:
            self._ended.set()
        self._stopping.set()
        if self._prefetch.done():
            self.prefetch.stop()

    def held(self, limit: str, change: int) -> None:
        """What a wait for groups is in truth a wait for, says the controller: "groups" where actors may begin some,
        "staleness" or "replay" where that bound or that cap keeps them from it, "evaluation" where one goes on.
        Changes are numbered: calls may overtake each other."""
        self._waits.hold(limit, change)

    def rested(self, version: int) -> None:
        """Engines on this GPU sleep, and will until there is a newer version than that; called from another thread."""
        self._waits.rested(version)

    def arrived(self, version: int) -> None:
        """Actors have the version that is evaluated; called from another thread."""
        self._waits.arrived(version)

    def grow(self, shards: tuple[Endpoints, ...]) -> None:
        """Claims also from the replay shards that joined since; called from another thread."""
        self._shards = shards
        for client in self._clients:
            client.grow(shards)

    def blob(self, version: int) -> list:
        """A version's bytes in the object store, for actors of other nodes: see Versions. Called from other threads."""
        return self._publisher.result(0).versions.blob(version)

    def seat(self, version: int, reader: str, workers: int, group: int):
        """An actor's place in the broadcast of a version: see Broadcasts. Called from other threads."""
        return self._publisher.result(0).broadcasts.seat(version, reader, workers, group)

    def serve_metrics(self, listen: Listen) -> int:
        """The port of `listen` on which this process serves its metrics."""
        if not self._port.done():
            self._gpus = watch(self.spec.settings.gpus)
            self._port.set_result(metrics_page.serve(0, "learner", listen))
        return self._port.result()

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that this process was given, as NVML sees them; called from other threads."""
        return () if self._gpus is None else self._gpus.newest

    def _lead(self, controller, until_step: int) -> str:
        from learner.batches.claims import Heard
        from learner.batches.prefetch import Prefetch
        from learner.ranks.lead import Lead

        spec, parts = self.spec, self.parts
        client, claiming, heard = self._clients = [self._client(), self._client(), self._client(HEARD_S)]
        prefetch = Prefetch(claiming, parts.settings, spec.seed, self._waits.evaluating)
        self._prefetch.set_result(prefetch)
        lead = Lead(
            parts.settings,
            spec.run_dir,
            spec.run_id,
            spec.world,
            steps=spec.steps,
            progress=parts.progress,
            bound=parts.bound,
            commands=parts.commands,
            publisher=self._publisher.result(0),
            controller=controller,
            client=client,
            prefetch=prefetch,
            waits=self._waits,
            rests=spec.rests,
            evaluated=spec.evaluated,
            saved=None if parts.saved is None else parts.progress.step,
            stopping=self._stopping,
            ended=self._ended,
        )
        try:
            with Heard(heard):
                return lead.run(until_step)
        finally:
            prefetch.close()
            client.close()
            traces.flush()

    def _client(self, timeout_s: float = 30.0) -> Client:
        return Client(self._shards, f"learner-{self.parts.progress.incarnation}", self.spec.keys, timeout_s)

    # What is commanded, on every rank.

    def _obey(self, kind: str, payload):
        parts = self.parts
        if kind == "step":
            log_facts.now(step=parts.progress.step + 1)
            rounds = self.spec.settings.rounds
            if rounds is not None and rounds.forgets(parts.progress.step):
                parts.trainer.restart()
            result = parts.trainer.step(payload, parts.progress.step)
            parts.progress.step += 1
            return result
        if kind == "weights":
            found = parts.trainer.full_state(self._keep), parts.trainer.probe(payload)
            if self.spec.rests:
                parts.trainer.give_back()
            return found
        if kind == "wait":
            return None
        if kind == "checkpoint":
            return self._write_part(Path(payload)) if self.spec.rank == 0 else self._write_beside(Path(payload))
        raise ValueError(f"{kind!r} is not a command")

    def _gather(self, tokens: tuple[int, ...], keep: Keep):
        self._keep = keep
        return self.parts.commands.give("weights", tokens)

    def _write_part(self, folder: Path) -> None:
        import torch

        from learner.ranks.commands import together

        trainer = self.parts.trainer
        trainer.save(folder / checkpoint.TAG)
        state = trainer.full_state()

        def write() -> None:
            torch.save(torch.get_rng_state(), folder / f"random-{self.spec.rank}.pt")
            if self.spec.rank == 0 and trainer.adapter is not None:
                trainer.adapter.write(folder / checkpoint.ADAPTER, state)
            elif self.spec.rank == 0:
                checkpoint.write_model(folder, self.spec.model_path, trainer.training.policy.model.config, state)

        together(write)

    def _write_beside(self, folder: Path) -> None:
        """On ranks 1..: where a part is not written rank 0 raises, and says what becomes of the run."""
        try:
            self._write_part(folder)
        except Exception as error:  # of a full disk each library says something else
            log.error("the checkpoint %s is not written: %s", folder, error)
