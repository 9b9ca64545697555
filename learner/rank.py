"""A rank of the learner. Rank 0 leads: it claims batches, tells all ranks what to do next, publishes and reports.

    rank 0                                           ranks 1..
    take the batch that the prefetch thread packed   wait for an order
    order "step"  ------------ micro-batches ----->  forward, backward, step
    commit the groups to replay
    order "weights", at the end of a round ------->  take part in the gather and the probe
    put them into the object store, announce
    order "checkpoint" now and then -------------->  write own part
    order "end" ---------------------------------->  return

An order is a collective, so ranks never disagree about what comes next. Rank 0 waits for groups no longer than
`claim_deadline_s`, the others for an order no longer than `ORDER_GRACE_S` more. Without `learner.rounds` each step is a
round of its own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path

from learner import checkpoint
from learner.config import LearnerSettings
from learner.lora_config import LoraSettings
from learner.record import Record
from protocols import metrics
from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.weights import TRIAL, Probe, WeightRef, version_of
from replay.config import ClientKeys, Endpoints

log = logging.getLogger("redraft.learner")

ORDER_GRACE_S = 300.0  # on top of the claim deadline: a checkpoint, a slow step
CURSOR_S = 60.0  # longest wait for the controller's cursor
POLL_S = 1.0  # how often a rank that waits for a batch looks up
BAD_STEPS = 3  # so many gradients in a row that are not finite end the run


class Rank:
    """One training process; `redraft` wraps it as a Ray actor whose methods run in threads."""

    def __init__(
        self,
        rank: int,
        world: int,
        settings: LearnerSettings,
        model_path: str,
        run_dir: str,
        run_id: str,
        seed: int,
        shards: tuple[Endpoints, ...],
        keys: ClientKeys | None,
        device: str = "cpu",
        *,
        steps: int,
        dtype: str = "float32",
        temperature: float = 1.0,
        lora: LoraSettings | None = None,
    ):
        """`model_path` is the start model also on resume; `steps` of the whole run; `temperature` that of sampling;
        with `lora` an adapter is trained in place of all weights."""
        self.rank, self.world, self.settings, self.device = rank, world, settings, device
        self.model_path, self.run_dir, self.run_id = model_path, Path(run_dir), run_id
        self.seed, self.shards, self.keys = seed, shards, keys
        self.steps, self.dtype, self.temperature, self.lora = steps, dtype, temperature, lora
        self.step = self.incarnation = 0
        self._published = 0  # the step whose weights were published last
        self._blob = None  # those weights, in the object store
        self._saved: Path | None = None  # the checkpoint that this incarnation goes on from
        self._resumed = False
        self._bad_steps = self._skipped = 0
        self._record = Record(self.run_dir, settings.record)
        self._stopping = threading.Event()
        self._prefetch = None
        self._held = self._waits_for = "groups"
        self._clients: list = []
        self._port: int | None = None

    def setup(self, master: tuple[str, int], resume: bool) -> dict:
        """Joins the ranks and loads the model or, on `resume`, the newest checkpoint if there is one.

        Returns the step and incarnation to go on from, the controller's cursor of the checkpoint, and how many
        parameters are trained. Blocks until all ranks are up.
        Raises SettingError when the checkpoint does not fit the settings, or a part cannot be found.
        """
        import torch

        from learner.credits import find
        from learner.trainer import Trainer, join_ranks

        find(self.settings.credit)
        torch.manual_seed(self.seed + self.rank)
        timeout_s = self.settings.claim_deadline_s + ORDER_GRACE_S
        self.objects = join_ranks(self.rank, self.world, master, self.device, timeout_s)
        self.trainer = Trainer(
            self.settings,
            self.model_path,
            steps=self.steps,
            dtype=self.dtype,
            temperature=self.temperature,
            device=self.device,
            lora=self.lora,
            seed=self.seed,
        )
        folder = checkpoint.newest(self.run_dir) if resume and self.rank == 0 else None
        incarnation = checkpoint.next_incarnation(self.run_dir) if self.rank == 0 else 0
        folder, self.incarnation = self._same((folder, incarnation))
        self._resumed = resume
        facts = {"incarnation": self.incarnation, "trained": self.trainer.trained}
        if folder is None:
            self._examine()
            return {"step": 0, "cursor": {}, **facts}
        state = checkpoint.read(folder, self.run_id, self.world, self.settings.zero)
        self.trainer.load(str(folder), checkpoint.TAG)
        self._examine()
        torch.set_rng_state(torch.load(folder / f"random-{self.rank}.pt", weights_only=True))
        self.step, self._saved = state.step, folder
        self._published = state.step if state.published is None else state.published
        return {"step": self.step, "cursor": state.cursor, **facts}

    def _examine(self) -> None:
        """Has the engine test itself; batches are packed by what it finds."""
        self.trainer.examine(self.seed)
        self.settings = self.settings.model_copy(update={"packing": self.trainer.packed})

    def announce(self, controller) -> None:
        """Announces the weights that training starts from; on resume, replay first takes back what came after them."""
        if self.rank:
            self._follow()
            return
        if self._resumed:
            client = self._client()
            try:
                client.resume(self.step)
            finally:
                client.close()
        try:
            self._publish_trial(controller)
        except SettingError:
            self._order("end", "failed")
            raise
        if self._published == self.step:
            self._publish(controller, {})
        else:
            self._publish_saved(controller)
        self._order("end", "announced")

    def run(self, controller, until_step: int) -> dict:
        """Trains until `until_step` steps are done or `stop` is called; returns the step and "done" or "stopped".

        `controller` is a Ray handle with `announce`, `step_done` and `cursor`. Raises DeadlineError when a batch does
        not come in time, RedraftError when gradients are not finite again and again.
        """
        import torch

        if self.device == "cpu":
            torch.set_num_threads(self.settings.threads)  # holds for the calling thread only
        if self.rank:
            reason = self._follow()
            return {"step": self.step, "reason": reason}
        try:
            reason = self._lead(controller, until_step)
        except RedraftError:
            self._order("end", "failed")  # the other ranks wait for an order: none of these errors arises in one
            raise
        self._order("end", reason)
        return {"step": self.step, "reason": reason}

    def stop(self) -> None:
        """Makes `run` finish its step, write a checkpoint and return; called from another thread."""
        self._stopping.set()
        if self._prefetch is not None:
            self._prefetch.stop()

    def held(self, limit: str) -> None:
        """What a wait for groups is in truth a wait for, says the controller: "groups" where actors may begin some,
        "staleness" or "replay" where that bound or that cap keeps them from it."""
        self._held = limit

    def grow(self, shards: tuple[Endpoints, ...]) -> None:
        """Claims also from the replay shards that joined since; called from another thread."""
        self.shards = shards
        for client in self._clients:
            client.grow(shards)

    def serve_metrics(self, listen: str) -> int:
        """The port of `listen` on which this process serves its metrics."""
        if self._port is None:
            self._port = metrics.serve(0, "learner", listen)
        return self._port

    # Orders ----------------------------------------------------------------------------------------------------------

    def _same(self, value):
        """Rank 0's value, on all ranks."""
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.objects)
        return box[0]

    def _order(self, kind: str, payload=None, each: list | None = None):
        """Rank 0: tells every rank to do `kind`, with one payload for all or one for each, and does it too."""
        import torch.distributed as dist

        payloads = each if each is not None else [payload] * self.world
        if self.world > 1:
            dist.scatter_object_list([None], [(kind, item) for item in payloads], src=0, group=self.objects)
        return self._obey(kind, payloads[0])

    def _follow(self) -> str:
        """Ranks 1..: does what rank 0 orders until it says "end"; returns why it did."""
        while (order := self._receive())[0] != "end":
            self._obey(*order)
        return order[1]

    def _receive(self) -> tuple:
        import torch.distributed as dist

        box = [None]
        dist.scatter_object_list(box, None, src=0, group=self.objects)
        return box[0]

    def _obey(self, kind: str, payload):
        if kind == "step":
            if self._begins_from_base():
                self.trainer.restart()
            result = self.trainer.step(payload, self.step)
            self.step += 1
            return result
        if kind == "weights":
            return self.trainer.full_state(), self.trainer.probe(payload)
        if kind == "checkpoint":
            return self._write_part(Path(payload))
        return None

    def _begins_from_base(self) -> bool:
        """Whether the next step is the first of a round that forgets the one before."""
        rounds = self.settings.rounds
        return rounds is not None and rounds.from_base and self.step > 0 and self.step % rounds.steps == 0

    def _ended_round(self) -> bool:
        """Whether the last step was the last of a round, or of the run."""
        rounds = self.settings.rounds
        return rounds is None or self.step % rounds.steps == 0 or self.step == self.steps

    def _write_part(self, folder: Path) -> None:
        import torch
        import torch.distributed as dist

        self.trainer.save(str(folder), checkpoint.TAG)
        torch.save(torch.get_rng_state(), folder / f"random-{self.rank}.pt")
        state = self.trainer.full_state()
        if self.rank == 0 and self.trainer.adapter is not None:
            self.trainer.adapter.write(folder / checkpoint.ADAPTER, state)
        elif self.rank == 0:
            checkpoint.write_model(folder, self.model_path, self.trainer.config, state)
        dist.barrier(group=self.objects)

    def _client(self):
        from replay.client import Client

        return Client(self.shards, f"learner-{self.incarnation}", self.keys)

    # Rank 0 ----------------------------------------------------------------------------------------------------------

    def _lead(self, controller, until_step: int) -> str:
        from learner.prefetch import Prefetch

        metrics.CHECKPOINT_TIME.set_to_current_time()
        metrics.STALENESS_BOUND.set(self.settings.max_staleness)
        self._clients = [self._client(), self._client()]
        client, prefetch = self._clients[0], Prefetch(self._clients[1], self.settings)
        self._prefetch = prefetch
        try:
            saved = self.step if self._saved else None
            if self.step < until_step:
                prefetch.start(self.step)
            while self.step < until_step and not self._stopping.is_set():
                seconds = {"gather": 0.0, "publish": 0.0, "checkpoint": 0.0}
                while not self._waited(seconds):
                    if prefetch.crowded and saved != self.step:
                        with timed(seconds, "checkpoint"):
                            self._checkpoint(client, controller)
                        saved = self.step
                batch = prefetch.take()
                if batch is None:
                    break
                if self.step + 1 < until_step:
                    prefetch.start(self.step + 1)
                report = self._train(batch, client, controller, seconds)
                if self.step % self.settings.checkpoint_every == 0 or prefetch.crowded:
                    with timed(seconds, "checkpoint"):
                        self._checkpoint(client, controller)
                    saved = self.step
                export(report)
                controller.step_done.remote(report)
            if saved != self.step:
                self._checkpoint(client, controller)
        finally:
            prefetch.close()
            client.close()
        return "done" if self.step >= until_step else "stopped"

    def _waited(self, seconds: dict) -> bool:
        """Waits up to POLL_S for the next batch; whether it is there."""
        with timed(seconds, "wait") as wait:
            ready = self._prefetch.ready(POLL_S)
            wait.state = self._waits_for = self._prefetch.reason if self._prefetch.reason == "straggler" else self._held
        return ready

    def _train(self, batch, client, controller, seconds: dict) -> dict:
        from learner.objectives import report

        seconds["pack"] = batch.pack_s
        with timed(seconds, "train"):
            result = self._order("step", each=batch.micros)
        if result.gradient_norm is not None:
            self._count_bad(result.applied)
        with timed(seconds, "commit"):
            client.commit(batch.ids, self.step, batch.priorities)
        if self._ended_round():
            self._publish(controller, seconds)
        self._record.write(self.step, version_of(self.incarnation, self.step), batch.kept)
        return {
            "step": self.step,
            "version": version_of(self.incarnation, self._published),
            **report(result.stats),
            "gradient_norm": result.gradient_norm if result.applied else None,
            "lr": result.lr,
            **batch.facts,
            "skipped_updates": self._skipped,
            "probe_noise": self._proof.noise,
            "wait_reason": self._waits_for,
            "seconds": seconds,
        }

    def _count_bad(self, applied: bool) -> None:
        self._bad_steps = 0 if applied else self._bad_steps + 1
        if applied:
            return
        self._skipped += 1
        log.warning("step %d: the gradient is not finite, so the weights stay as they were", self.step)
        if self._bad_steps == BAD_STEPS:
            objective = self.settings.objective.model_dump()
            raise RedraftError(
                f"learner: {BAD_STEPS} gradients in a row were not finite. Lower learner.optimizer.lr "
                f"({self.settings.optimizer.lr:g}), or look at learner.objective: {objective}"
            )

    def _publish(self, controller, seconds: dict) -> None:
        """The weights that were trained last."""
        tokens = self._probe_tokens()
        with timed(seconds, "gather"):
            state, logprobs = self._order("weights", tokens)
        with timed(seconds, "publish"):
            self._published = self.step
            self._announce(controller, state, self._proof.probe(state, logprobs))

    def _publish_saved(self, controller) -> None:
        """Amid a round that is resumed: the weights with which actors played it."""
        from safetensors.torch import load_file

        state = load_file(self._saved / checkpoint.PUBLISHED)
        self._announce(controller, state, self._proof.probe_of(state))

    def _announce(self, controller, state: dict, probe: Probe) -> None:
        from learner.publish import publish

        ref: WeightRef = publish(state, version_of(self.incarnation, self._published), probe, self.trainer.adapter)
        self._blob = ref.blob
        metrics.PUBLISHED.set(ref.version)
        controller.announce.remote(ref)

    def _probe_tokens(self) -> tuple[int, ...]:
        from learner.publish import probe_tokens

        return probe_tokens(self.settings.probe_tokens, self.trainer.vocabulary, self.seed)

    def _publish_trial(self, controller) -> None:
        """Perturbed weights, which an actor must follow before it may play: no rounding hides an old head."""
        from learner.proof import Proof
        from learner.publish import publish

        tokens = self._probe_tokens()
        state, _ = self._order("weights", tokens)
        self._proof = Proof(self.trainer.model_of, self.trainer.perturbed, tokens, self.trainer.vocabulary, self.device)
        state, probe = self._proof.trial(state, self.seed)
        controller.announce_trial.remote(publish(state, TRIAL, probe, self.trainer.adapter))

    def _checkpoint(self, client, controller) -> None:
        import ray

        try:
            cursor = ray.get(controller.cursor.remote(), timeout=CURSOR_S)
        except ray.exceptions.GetTimeoutError:
            raise DeadlineError("learner", "the controller's cursor", CURSOR_S) from None
        folder = checkpoint.begin(self.run_dir, self.step)
        self._order("checkpoint", str(folder))
        if self._published != self.step:
            (folder / checkpoint.PUBLISHED).write_bytes(ray.get(self._blob))
        common = (cursor, self.world, self.settings.zero)
        state = checkpoint.RunState(self.run_id, self.step, self.incarnation, *common, self._published)
        path = checkpoint.finish(folder, state, self.settings.keep_checkpoints)
        client.checkpoint(self.step)
        metrics.CHECKPOINT_TIME.set_to_current_time()
        log.info("checkpoint %s", path)


class timed:
    """Adds the seconds that a block takes to `seconds[phase]`, and to those that the learner spent in `state`."""

    STATES = {"train": "training", "commit": "training", "gather": "weights", "publish": "weights"}

    def __init__(self, seconds: dict, phase: str):
        self._seconds, self._phase = seconds, phase
        self.state = self.STATES.get(phase, phase)

    def __enter__(self) -> timed:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        passed = time.monotonic() - self._began
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + passed
        metrics.LEARNER_SECONDS.labels(state=self.state).inc(passed)


def export(report: dict) -> None:
    """Sets this process's Prometheus metrics to one step's report; a figure over nothing is NaN, or has no series."""
    gauges = {
        metrics.STEP: "step",
        metrics.LOSS: "loss",
        metrics.GRADIENT_NORM: "gradient_norm",
        metrics.ENTROPY: "entropy",
        metrics.MISMATCH: "mismatch_mean",
        metrics.EFFECTIVE_SAMPLES: "effective_samples",
        metrics.MASKED_SHARE: "masked_share",
        metrics.TRAINED_TOKENS: "trained_tokens",
    }
    for gauge, key in gauges.items():
        gauge.set(math.nan if report[key] is None else report[key])
    for phase, seconds in report["seconds"].items():
        metrics.STEP_SECONDS.labels(phase=phase).observe(seconds)
    metrics.REWARD.set_only(_numbered(report["reward_by_index"]))
    metrics.ACCURACY.set_only(_numbered(report["success_by_index"]))
    metrics.CUT_SHARE.set_only(report["cut_share"])
    metrics.UNPARSED_SHARE.set_only(report["unparsed_share"])
    lengths = report["response_tokens"]
    metrics.RESPONSE_TOKENS.set_only({role: found["mean"] for role, found in lengths.items()})
    metrics.LONGEST_RESPONSE.set_only({role: found["max"] for role, found in lengths.items()})
    for age, groups in report["staleness_counts"].items():
        for _ in range(groups):
            metrics.STALENESS.observe(int(age))


def _numbered(values: list[float]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}
