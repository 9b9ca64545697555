"""The trainer: the optimizer steps of a batch in one rank, and the weights gathered from all of them."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.batches.packing import MicroBatch
from learner.config import LearnerSettings, OptimizerSettings
from learner.lora_config import LoraSettings
from learner.model import attention, compiled
from learner.model.distilled import Guide
from learner.model.load import load_model
from learner.model.policy import Policy
from learner.model.saved import as_saved, saved_buffers
from learner.objectives import SETTING, STATS, loss_of, make, per_batch
from learner.ranks import proximal, shards
from learner.ranks.average import Average
from learner.ranks.proximal import Proximal
from learner.ranks.training import Training, begin
from learner.weights.proof import perturbed
from protocols import heap
from protocols.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from learner.model.lora import Adapter

log = logging.getLogger("redraft.learner")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Keep = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`stats` are the STATS of all ranks, each token counted once; without `applied` a gradient was not finite, and its
    optimizer step moved nothing.

    `gradient_norm` is the mean over optimizer steps, but for those in which no token weighs: there is no gradient, and
    nothing moves. None where there is no other.
    """

    stats: np.ndarray
    gradient_norm: float | None
    lr: float
    applied: bool


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, on the CPU."""
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def join_ranks(rank: int, world: int, master: tuple[str, int], device: str, timeout_s: float) -> dist.ProcessGroup:
    """Joins this process to the other ranks and returns a CPU group for objects. Blocks until all are there.

    Rank 0 keeps the store at which they meet, and listens at the address `master` alone."""
    host, port = master
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",  # Ray shows each rank its own device only
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device,
    }
    with heap.lasting():
        import deepspeed
        from deepspeed.runtime import bf16_optimizer

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The optimizer of stage 1 in bfloat16 prints memory reports and notes that no setting turns off.
    for name in ("see_memory_usage", "print"):
        setattr(bf16_optimizer, name, lambda *_, **__: None)
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)  # in DeepSpeed's own calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ build at the first collective
    backend = "gloo" if device == "cpu" else "nccl"
    timeout = timedelta(seconds=timeout_s)
    # DeepSpeed would have torch bind every address of the machine; it takes a group that is there as it is.
    dist.init_process_group(
        backend,
        store=_store(rank, world, master, timeout),
        rank=rank,
        world_size=world,
        timeout=timeout,
        device_id=torch.device(device, 0) if device == "cuda" and world > 1 else None,
    )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    group = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "this process is in the group of all"
    return group


def _store(rank: int, world: int, master: tuple[str, int], timeout: timedelta):
    """The store at which the ranks meet. torch's own listens at every address, so rank 0 gives it a socket."""
    listening = None
    if rank == 0:
        family, *_, where = socket.getaddrinfo(*master, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who had the port may not be forgotten
        bound.bind(where)
        listening = bound.detach()  # the store closes it
    store = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]  torch documents it
    return store(*master, world, rank == 0, timeout, master_listen_fd=listening)


class Trainer:
    """A model under DeepSpeed. Every method is a collective: all ranks call it, in the same order."""

    def __init__(
        self,
        settings: LearnerSettings,
        model_path: str,
        *,
        steps: int,
        dtype: str = "float32",
        temperature: float = 1.0,
        device: str = "cpu",
        lora: LoraSettings | None = None,
        seed: int = 0,
    ):
        """`steps` of the run are what the learning rate falls over; `temperature` is that of sampling; with `lora` an
        adapter is trained, whose first values `seed` draws."""
        if dtype not in DTYPES:
            raise SettingError("model.dtype", f"{dtype} is not trained", f"Choose {' or '.join(DTYPES)}")
        self.settings, self.steps, self.device = settings, steps, device
        self.model_path, self.temperature, self.dtype = model_path, temperature, DTYPES[dtype]
        self.objective = make(settings.objective)
        self.attention = attention.choose(settings.attention, device, self.dtype)
        self.adapter = self._adapter(lora, seed)
        self.compiled = False  # whether layers are: see `examine`
        self.packed = False  # whether sequences may share a row: see `examine`
        self.reference = self._start_model()
        self.average = self._average()
        self.training = self._begin()

    def _adapter(self, lora: LoraSettings | None, seed: int) -> Adapter | None:
        if lora is None:
            return None
        from learner.model.lora import Adapter  # PEFT takes seconds to import

        return Adapter(lora, self.model_path, seed)

    def _start_model(self) -> Policy | None:
        """A copy of the start model, where it is needed and not there beneath an adapter."""
        if self.objective.reference is None or self.adapter is not None:
            return None
        if self.settings.zero == 3:
            problem = "needs a whole copy of the start model on every rank, which learner.zero: 3 is there to avoid"
            cure = "Set learner.zero to 2, or train an adapter (model.lora)"
            raise SettingError(SETTING, f"{self.settings.objective.name} {problem}", cure)
        model = self._load().requires_grad_(False)
        return Policy(model.eval(), self.temperature, self.settings.head).to(self.device)

    def _average(self) -> Average | None:
        """The teacher that follows the trained weights, where there is one. It begins as the start model."""
        teacher = self.objective.teacher
        if teacher is None or teacher.rate is None:
            return None
        if self.adapter is not None or self.settings.zero == 3:
            what = "an adapter (model.lora)" if self.adapter is not None else "learner.zero: 3"
            problem = f"{self.settings.objective.name} keeps a whole average of the weights, which {what} cannot have"
            raise SettingError("learner.objective.teacher", problem, "Set it to current")
        model = self._load().requires_grad_(False)
        policy = Policy(model.eval(), self.temperature, self.settings.head, self.packed).to(self.device)
        return Average(policy, teacher.rate)

    @property
    def _beside(self) -> list[Policy]:
        """The policies beside the trained one."""
        return [one for one in (self.reference, self.average and self.average.policy) if one is not None]

    def _load(self) -> PreTrainedModel:
        """The start model. With attention: auto one that knows no other attention than transformers' gets that."""
        try:
            return load_model(self.model_path, self.dtype, self.attention)
        except SettingError:
            if self.settings.attention != "auto" or self.attention == "sdpa":
                raise
            self.attention = "sdpa"
            return load_model(self.model_path, self.dtype, self.attention)

    @property
    def vocabulary(self) -> int:
        return self.training.policy.model.config.get_text_config().vocab_size

    def _begin(self) -> Training:
        model = self._load()
        if self.adapter is not None:
            self.adapter.add(model)
        if self.settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        training = begin(model, self.settings, self.dtype, self.temperature, self.packed)
        if self.compiled:
            compiled.compile_layers(training.policy)
        return training

    def restart(self) -> None:
        """The start model and a fresh optimizer, in place of what was trained."""
        self.training.free()
        del self.training  # before its place is needed for the start model
        gc.collect()
        self.average = self._average()
        self.training = self._begin()

    def examine(self, seed: int) -> None:
        """Tests the loaded model (see learner.model.selftest) and finds out whether sequences may share a row.

        With attention: auto, a model that cannot do without masks gets them. Raises SettingError where the model does
        not compute here what it computes elsewhere, or where `packing: true` would mix sequences.
        """
        policy, settings = self.training.policy, self.settings
        if settings.attention == "auto" and self.attention == attention.VARLEN:
            sound = self._without_masks(seed)
        else:
            sound = self._examined(seed)
        if settings.packing is True and not sound:
            problem = f"a model of type {policy.model.config.model_type} does not keep the sequences of a row apart"
            raise SettingError("learner.packing", problem, "Set it to auto or false")
        if settings.packing and not sound and dist.get_rank() == 0:
            log.warning(
                "a model of type %s does not keep the sequences of a row apart: each gets a row of its own, as with "
                "learner.packing: false",
                policy.model.config.model_type,
            )
        self.packed = bool(settings.packing) and sound
        for one in (policy, *self._beside):
            one.packed = self.packed
        if compiled.wanted(settings.compile, self.device, self.training.stage):
            self.compiled = self._compiled_alike(seed)

    def _compiled_alike(self, seed: int) -> bool:
        """Compiles the layers on all ranks, or on none where one cannot: whether they are. Raises SettingError where
        they must be."""
        policy = self.training.policy
        problem = compiled.compile_tested(policy, seed)
        failed = torch.tensor([float(bool(problem))], device=self.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if not failed.item():
            return True
        compiled.uncompile(policy)
        problem = problem or "another rank cannot compile its layers"
        if self.settings.compile is True:
            cure = "Set it to auto or false. It needs a C compiler on a CPU, and Triton on a GPU"
            raise SettingError("learner.compile", problem, cure)
        if dist.get_rank() == 0:
            log.warning("learner.compile is off: %s", problem)
        return False

    def _without_masks(self, seed: int) -> bool:
        """As `_examined`; where the model fails without masks, or mixes sequences, with masks."""
        try:
            if self._examined(seed):
                return True
            why = "it does not keep the sequences of a row apart"
        except SettingError as error:
            why = str(error)
        if dist.get_rank() == 0:
            log.info("learner.attention is sdpa: without masks, %s", why)
        self.attention = "sdpa"
        for one in (self.training.policy, *self._beside):
            one.model.set_attn_implementation(self.attention)
        return self._examined(seed)

    def _examined(self, seed: int) -> bool:
        """Whether sequences may share a row, by a test of the loaded model. Raises SettingError where it fails."""
        from learner.model.selftest import examine, judge

        policy, state = self.training.policy, self.full_state()
        rows = self.settings.micro_tokens // self.settings.row_tokens
        packing = bool(self.settings.packing)
        found = examine(policy, lambda: self.model_of(state) if state else None, seed, packing, rows)
        worst = torch.from_numpy(found).to(self.device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)  # ranks must not disagree
        return judge(policy, worst.cpu().numpy())

    def step(self, micros: Sequence[MicroBatch], step: int) -> StepResult:
        """The run's step number `step` (0 is the first), on this rank's micro-batches: the optimizer steps that these
        are of, as many on every rank."""
        lr = learning_rate(self.settings.optimizer, *self._scheduled(step))
        for group in self.training.optimizer.param_groups:
            group["lr"] = lr
        updates = [list(part) for _, part in groupby(micros, key=lambda micro: micro.update)]
        at_start = proximal.look(
            self.objective, updates, self.settings.updates.minibatches, self.training.policy, self._tensors, self.device
        )
        sums, norms = torch.zeros(len(STATS), dtype=torch.float64, device=self.device), []
        for update in updates:
            if self._weighs(update):
                sums = self._update(update, at_start, sums)
                norms.append(self.training.norm)
        if not norms:
            return StepResult(sums.cpu().numpy(), None, lr, applied=True)
        if self.average is not None:
            self.average.follow(self.training.policy)
        norm = float(np.mean(norms))
        stats = per_batch(self._over_ranks(sums), self.settings.updates)
        return StepResult(stats, norm, lr, applied=math.isfinite(norm))

    def _update(self, micros: Sequence[MicroBatch], at_start: Proximal | None, sums: Tensor) -> Tensor:
        """One optimizer step; the sums of STATS with what its micro-batches add.

        Coefficients are shares of the minibatch's loss over all ranks, so gradients add up; DeepSpeed averages over
        ranks, which the factor `world` undoes.
        """
        for micro in micros:
            loss, stats = self._loss(micro, at_start)
            self.training.engine.backward(loss * dist.get_world_size())
            sums = torch.cat([sums[:-1] + stats[:-1], torch.maximum(sums[-1:], stats[-1:])])
        if self.training.stage == 0:
            self._fill_gradients()
        self.training.step()
        return sums

    def _fill_gradients(self) -> None:
        """Gradients where the batch made none, as DeepSpeed would, but in the type of the sums."""
        for parameter in self.training.policy.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)

    def _weighs(self, micros: Sequence[MicroBatch]) -> bool:
        """Whether any token of the batch weighs, on any rank. A step without one would still move the weights: the
        optimizer's moments go on, and weight decay."""
        mine = any((micro.coefficients != 0).any() or (micro.divergences != 0).any() for micro in micros)
        flag = torch.tensor([float(mine)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def _scheduled(self, step: int) -> tuple[int, int]:
        """The step's number in what the learning rate falls over, and how many steps that has: the run, or a round."""
        rounds = self.settings.rounds
        if rounds is None or not rounds.from_base:
            return step, self.steps
        start = step - step % rounds.steps
        return step - start, min(rounds.steps, self.steps - start)

    def _tensors(self, micro: MicroBatch) -> tuple[dict[str, Tensor], tuple]:
        """The arrays on the device by name, and the policy's inputs among them."""
        named = micro.arrays().items()
        tensors = {name: torch.from_numpy(array).to(self.device, non_blocking=True) for name, array in named}
        inputs = (tensors[name] for name in ("tokens", "positions", "picks", "targets"))
        return tensors, (*inputs, micro.chunks, tensors["temperatures"])

    def _loss(self, micro: MicroBatch, at_start: Proximal | None) -> tuple[Tensor, Tensor]:
        tensors, inputs = self._tensors(micro)
        reference = self._reference(inputs)
        prox, kept = (None, None) if at_start is None else at_start.of(tensors["places"])
        logprobs, entropy, *divergence = self.training.engine(*inputs, self._guide(micro))
        return loss_of(self.objective, logprobs, entropy, tensors, reference, prox, *divergence, kept_N=kept)

    @torch.no_grad()
    def _guide(self, micro: MicroBatch) -> Guide | None:
        """What the objective's teacher makes of the micro-batch's views, in a forward pass of its own."""
        teacher, views = self.objective.teacher, micro.views
        if teacher is None or views is None:
            return None
        policy = self.training.policy if self.average is None else self.average.policy
        arrays = (torch.from_numpy(array).to(self.device) for array in (views.tokens, views.positions, views.picks))
        return Guide(policy, policy.hidden(*arrays), teacher.measure)

    @torch.no_grad()
    def _reference(self, inputs: tuple) -> Tensor | None:
        """Log-probs under the start model, where they are needed: a copy of it, or the trained one without its
        adapter."""
        if self.objective.reference is None:
            return None
        if self.adapter is not None:
            with self.adapter.disabled(self.training.policy):
                return self.training.policy(*inputs)[0]
        return None if self.reference is None else self.reference(*inputs)[0]

    def _over_ranks(self, sums: Tensor) -> np.ndarray:
        total, largest = sums.clone(), sums[-1:].clone()
        dist.all_reduce(total)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return torch.cat([total[:-1], largest]).cpu().numpy()

    def full_state(self, keep: Keep = copied) -> dict[str, Tensor]:
        """What a model folder of these weights holds, by the names in it, on the CPU: the weights in the run's dtype,
        and in their own the buffers that are saved (a router's bias). Empty on ranks other than 0.

        A head that is tied to the embeddings is not among them. Of a model with an adapter only that, by the names of
        PEFT's files. `keep` is given the live tensors, wherever they lie, and returns them as they are to be kept.
        """
        model = self.training.policy.model
        named = dict(model.named_parameters()) if self.adapter is None else self.adapter.trained(model)
        with self._whole(list(named.values())):
            if dist.get_rank():
                return {}
            state = {name: parameter.detach().to(self.dtype) for name, parameter in named.items()}
            if self.adapter is None:
                state = as_saved(model, state | saved_buffers(model))
            return keep(state)

    def model_of(self, state: dict[str, Tensor]) -> PreTrainedModel:
        """A model with the weights of such a state, on the CPU. No collective."""
        if self.adapter is not None:
            return self.adapter.merged(state, self.dtype, self.attention)
        return load_model(self.model_path, self.dtype, self.attention, state)

    def perturbed(self, state: dict[str, Tensor], strength: float, seed: int) -> dict[str, Tensor]:
        """Such a state with relative changes of `strength` of the weights that it changes. No collective."""
        change = perturbed if self.adapter is None else self.adapter.perturbed
        return change(state, strength, seed)

    def give_back(self) -> None:
        """Leaves to others what torch keeps of the GPU's memory for later. No collective."""
        if self.device != "cpu":
            gc.collect()
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _whole(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        if self.training.stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
            yield

    @torch.no_grad()
    def probe(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of tokens 1.. at temperature 1."""
        policy = self.training.policy
        row = torch.tensor([list(tokens)], device=self.device)
        positions = torch.arange(row.shape[1], device=self.device)
        temperature, policy.temperature = policy.temperature, 1.0
        policy.eval()
        logprobs, _ = policy(row, positions[None], positions[:-1], row[0, 1:])
        policy.train()
        policy.temperature = temperature
        return tuple(logprobs.tolist())

    def save(self, folder: Path) -> None:
        """What training goes on from; of frozen weights nothing, for they are those of the start model."""
        shards.save(self.training, folder)
        if self.average is not None:
            self.average.save(folder)

    def load(self, folder: Path) -> None:
        """Goes on from what `save` of any number of ranks, under any stage, has written."""
        shards.load(self.training, folder)
        if self.average is not None:
            self.average.load(folder)


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of step number `step` (from 0) of `steps`: a linear rise, then the schedule."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps))
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr
