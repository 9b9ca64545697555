"""Settings of the learner: what a turn is worth, the loss, the optimizer, and how the work is spread over ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from learner.credit_config import Credit, GroupCredit
from learner.objective_config import GrpoSettings, Objective
from protocols.settings import NO_STANDBY, Settings
from protocols.turns import Role

Decay = Annotated[float, Field(ge=0, lt=1)]
TRAINED_ROLES = tuple(role for role in Role if role is not Role.ERROR)


class OptimizerSettings(Settings):
    """AdamW and its learning rate over the run."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of AdamW's first and second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on all parameters."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up; linear and cosine would reach 0 at the step after the
    run's last."""
    clip: PositiveFloat = 1.0
    """Largest norm of the batch's gradient."""


class UpdateSettings(Settings):
    """Optimizer steps of a batch. However many, a batch is one step of the run: one weights version, one learning rate
    of the schedule, one commit of its groups; it counts once in `steps`, `checkpoint_every` and staleness."""

    minibatches: PositiveInt = 1
    """Parts of a batch, each one optimizer step: groups stay whole, and are dealt anew in each epoch."""
    epochs: PositiveInt = 1
    """How often a batch is trained on. The clips of `objective` bound how far the policy moves from where it was at the
    start of the batch."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a batch."""
        return self.minibatches * self.epochs


class RoundSettings(Settings):
    """Rounds of training on what one model sampled: iterations of RISE (arXiv 2407.18219), STaR, Agent-R."""

    steps: PositiveInt
    """Steps of a round, a batch each. Weights are published after each round only, and at the end of the run, so that
    actors sample a whole round with one model."""
    from_base: bool = False
    """Train each round from the start model with a fresh optimizer, the learning rate running over the round (STaR,
    arXiv 2203.14465)."""

    def forgets(self, step: int) -> bool:
        """Whether the step after `step` ones is the first of a round that forgets the one before."""
        return self.from_base and step > 0 and step % self.steps == 0


class RecordSettings(Settings):
    """What the run folder keeps of the turns that were trained on, for `redraft view`."""

    groups: NonNegativeInt = 4
    """Groups of each step that are kept; 0 keeps none, also of evaluations."""
    max_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """Bytes of them; beyond that the oldest go. What is kept of evaluations is small, and stays."""
    batches: bool = False
    """Keep all that each step trained on, and the digest of the weights that it made, in `batches/`: `redraft replay
    train` then trains the run again to the same weights. It grows with the run, by what its turns take."""


class LearnerSettings(Settings):
    """How groups become weights."""

    ranks: PositiveInt = 1
    """Training processes; each is a Ray actor with one device."""
    zero: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights. One rank has
    nothing to shard, so there the cheapest stage runs, whatever is set."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer keeps AdamW's state and its copy of the weights in host memory, and steps there, for what does not fit
    into a GPU otherwise: slower by the way there and back, and by the step on `threads` CPU threads. It needs stage 2
    of `zero`, which runs in place of 0 and 1; in bfloat16 gradients stay on the GPU, but with 3 they leave it, too."""
    cpus: NonNegativeFloat = 1.0
    """Ray CPUs of one rank."""
    gpus: NonNegativeFloat = 0.0
    """Ray GPUs of one rank; above 0 it trains on CUDA."""
    resources: dict[str, PositiveFloat] = {}
    """Ray resources of one rank that only some nodes have, so that ranks land there: {learner: 1}."""
    batch_groups: PositiveInt = 32
    """Groups of a batch: one batch is one step of the run, and one weights version."""
    updates: UpdateSettings = UpdateSettings()
    """Several optimizer steps a batch, as PPO takes them."""
    max_staleness: NonNegativeInt | Literal["auto"] = 1
    """eta: most steps between the weights that sampled a token and those that learn from it. auto begins at 0 and finds
    the bound at which most of the learner's time goes into effective samples: it rises by one where the learner waits
    while the bound keeps actors from playing, stays there if that spares more than the effective sample size has
    fallen, and falls again when that drops. It needs an objective whose ratios weigh samples (grpo), and groups that
    are used once, step by step."""
    row_tokens: PositiveInt = 1024
    """Length of a packed row, and of the longest sequence: longer ones lose their end (counted as truncated)."""
    micro_tokens: PositiveInt = 4096
    """Tokens of one forward pass of one rank: a multiple of row_tokens."""
    packing: bool | Literal["auto"] = "auto"
    """Several sequences in a row. Not every model keeps them apart: recurrent and convolution layers carry state over,
    some attention masks ignore positions. false puts one sequence into a row, padded at the right, which is sound for
    every causal model and takes more rows; auto packs unless the self-test at the start of the run finds a leak."""
    attention: Literal["auto", "eager", "sdpa", "varlen"] = "auto"
    """Attention kernel. varlen makes no mask: each sequence of a packed row attends to itself alone, by torch's kernel
    for that on CUDA (not in float32), by a loop over sequences on a CPU. auto is varlen, or sdpa for a model that needs
    masks, by the self-test at the start of the run."""
    head: Literal["model", "float32"] = "model"
    """Type of the logits: the model's own, which the engine rounds to as well, or float32, exact under bfloat16 weights
    at twice the memory of a piece of logits."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the decoder layers (torch.compile), for no lengths in particular. auto does on CUDA where a test at the
    start of the run finds the same log-probs and gradients, and not on CPUs; true is refused where it fails. Stage 3 of
    `zero` cannot have it on several ranks."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerSettings = OptimizerSettings()
    credit: Credit = GroupCredit()
    """What a turn is worth."""
    objective: Objective = GrpoSettings()
    """The loss."""
    average: Literal["token", "turn", "sequence", "constant"] = "token"
    """token: every token weighs the same (DAPO). turn: every turn does, with the mean over its tokens (RISE).
    sequence: every path of a group does, with the mean over its tokens (GRPO). constant: the sum over tokens divided
    by row_tokens, as a mean over sequences (Dr. GRPO)."""
    rounds: RoundSettings | None = None
    """Train in rounds instead of publishing after each step."""
    roles: dict[str, NonNegativeFloat] = {role.name.lower(): 1.0 for role in TRAINED_ROLES}
    """Weight of the tokens of each role in the loss; a role that is not named is not trained. Those of a program's own
    (rollout.roles) can be named, too; one that is not weighs what its turns weigh as actions or attempts."""
    logprob_chunk: PositiveInt = 4096
    """Tokens whose float32 logits exist at once."""
    claim_deadline_s: PositiveFloat = 1200.0
    """Longest wait for a batch before the run stops and says who was waited for. Longer than `actors.lease_s`: a group
    that hangs is to be played again before."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; one is also written at the end and on stop."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = False
    """Also keep the checkpoint that has solved most in the evaluations of `evaluation.every`, for `--best`."""
    record: RecordSettings = RecordSettings()
    """What is kept for people to read."""
    restarts: NonNegativeInt = 3
    """Times in a row, without a new checkpoint between, that the ranks are started anew from the newest checkpoint when
    the process of one has died, or its node was lost: actors and replay go on meanwhile. 0: the run ends instead, and
    the same command resumes it."""
    standby: bool = False
    """Beside each rank, keep a process that has imported torch and DeepSpeed (0.3 GB) and waits to take its place. Not
    with gpus."""
    threads: PositiveInt = 1
    """CPU threads of a rank."""
    probe_tokens: Annotated[int, Field(ge=16)] = 32
    """Length of the sequence by which actors prove that they compute with the published weights."""

    @field_validator("roles")
    @classmethod
    def _some_role(cls, roles: dict[str, float]) -> dict[str, float]:
        if not any(roles.values()):
            raise ValueError("roles: every weight is 0, so nothing is trained. Give one role a weight above 0")
        return roles

    @model_validator(mode="after")
    def _fits(self):
        if self.micro_tokens % self.row_tokens:
            raise ValueError(
                f"micro_tokens ({self.micro_tokens}) is not a multiple of row_tokens ({self.row_tokens}). "
                f"Set micro_tokens to {max(1, self.micro_tokens // self.row_tokens) * self.row_tokens}"
            )
        if self.ranks > 1 and 0 < self.gpus <= 0.5:
            raise ValueError(
                f"gpus ({self.gpus:g}) lets several ranks be on one GPU, which NCCL refuses. Set gpus or ranks to 1"
            )
        if self.updates.minibatches > self.batch_groups:
            raise ValueError(
                f"updates.minibatches ({self.updates.minibatches}) is more than the groups of a batch. "
                f"Set it to {self.batch_groups} at most, or raise batch_groups"
            )
        if self.max_staleness == "auto":
            self._finds_its_bound()
        elif self.rounds is not None and self.max_staleness < self.rounds.steps - 1:
            steps = self.rounds.steps
            raise ValueError(
                f"max_staleness ({self.max_staleness}) is too small for rounds of {steps} steps: the last batch of a "
                f"round is {steps - 1} steps old. Set max_staleness to {steps - 1}, or to {2 * steps - 1} so that "
                "actors play the next round while one is trained, with the weights before"
            )
        return self

    def _finds_its_bound(self) -> None:
        """Refuses what leaves a bound nothing to go by."""
        if self.rounds is not None:
            raise ValueError(
                "max_staleness: auto cannot be had with rounds, which say by themselves how old the last batch of a "
                f"round is. Set max_staleness to {self.rounds.steps - 1} or more, or leave rounds out"
            )
        if not self.objective.weighs_ratio:
            raise ValueError(
                f"max_staleness: auto goes by the effective sample size of importance ratios, by which objective "
                f"{self.objective.name} does not weigh its samples. Set max_staleness to a number, or objective.name "
                "to grpo"
            )

    @model_validator(mode="after")
    def _takes_effect(self):
        """Refuses what would do nothing."""
        self.objective.check_updates(self.updates.steps)
        if self.standby and self.gpus:
            raise ValueError(f"standby: true cannot be had with gpus={self.gpus:g}: {NO_STANDBY}")
        if self.standby and not self.restarts:
            raise ValueError(
                "standby: true does nothing with restarts: 0, by which no rank is started anew. Leave one of them out"
            )
        if self.offload == "optimizer" and not self.gpus:
            raise ValueError(
                "offload: optimizer does nothing where ranks train on CPUs, whose memory is the host's. "
                "Leave it out, or set gpus to 1"
            )
        if self.compile is True and self.zero == 3 and (self.ranks > 1 or self.offload == "optimizer"):
            raise ValueError(
                "compile: true cannot be had with zero: 3, whose layers have their weights for a moment only. "
                "Set compile to auto or false, or zero to 2"
            )
        if self.credit.facts.compares_groups and self.batch_groups < 2:
            raise ValueError(
                f"credit {self.credit.name} is to compare groups of a batch, of which there is one. "
                "Set batch_groups to 2 or more"
            )
        if not self.objective.weighs_credit and not self.credit.facts.chooses:
            raise ValueError(
                f"credit {self.credit.name} has no effect with objective {self.objective.name}, which does not ask "
                "what a turn is worth. Set credit to {name: raw}, whose keep says which turns are trained"
            )
        if self.average == "constant" and self.objective.normalises:
            raise ValueError(
                f"average: constant does what token does with objective {self.objective.name}, which scales the "
                "weights of a batch to a mean of 1. Set average to token, or normalise to false where it can be"
            )
        return self

    def role_weight(self, role: Role, own: str | None = None) -> float:
        """That of a turn of this role; `own` is what its program calls it."""
        return self.roles.get(role.name.lower() if own not in self.roles else own, 0.0)
