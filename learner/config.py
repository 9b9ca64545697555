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

from protocols.settings import Settings
from protocols.turns import Role

TRAINED_ROLES = tuple(role for role in Role if role is not Role.ERROR)


class OptimizerSettings(Settings):
    """AdamW and its learning rate over the run."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on all parameters."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up; linear and cosine reach 0 at the run's last step."""
    clip: PositiveFloat = 1.0
    """Largest norm of the batch's gradient."""


class CreditSettings(Settings):
    """What a turn is worth."""

    name: Literal["group", "turnwise", "raw"] = "group"
    """group: the episode's return against the group's mean. turnwise: the turn's reward against the mean of its turn
    number. raw: the turn's reward."""
    baseline: Literal["group", "batch"] = "group"
    """turnwise: take the mean over the turns of the group, or of the whole batch."""
    std: bool = True
    """group: divide by the group's standard deviation."""

    @model_validator(mode="after")
    def _fits(self):
        for key, owner in (("baseline", "turnwise"), ("std", "group")):
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"credit.{key} only acts with credit.name: {owner}. Remove {key}, or set that name")
        return self


class AwrSettings(Settings):
    """Cross-entropy weighted by exp(credit / temperature) (RISE, arXiv 2407.18219; AWR, arXiv 1910.00177)."""

    name: Literal["awr"]
    temperature: PositiveFloat = 0.4
    """tau: small means that only the best turns count."""
    normalise: bool = True
    """Scale the weights of a batch to a mean of 1 (the code of RISE does not)."""
    max_weight: PositiveFloat = 20.0
    """Largest weight, before they are normalised."""


class GrpoSettings(Settings):
    """Clipped policy gradient (arXiv 2402.03300) with corrections for turns that older weights sampled."""

    name: Literal["grpo"]
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    kl: NonNegativeFloat = 0.0
    """Weight of the divergence from the start model (k3 estimator); above 0 every rank holds a copy of that model."""
    correction: Literal["none", "tis", "decoupled"] = "decoupled"
    """none: clip the ratio to the sampling policy. tis: multiply the loss by that ratio, capped. decoupled: multiply
    by it, and mask tokens where it is too large (arXiv 2505.24298)."""
    tis_cap: PositiveFloat = 2.0
    """tis: largest factor."""
    max_weight: PositiveFloat = 5.0
    """decoupled: tokens of a larger factor are masked; they still count in the mean."""

    @model_validator(mode="after")
    def _fits(self):
        for key, owner in (("tis_cap", "tis"), ("max_weight", "decoupled")):
            if self.correction != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"objective.{key} only acts with objective.correction: {owner}. Remove it or set that")
        return self


class SftSettings(Settings):
    """Cross-entropy weighted by the credit where it is positive: with raw rewards of 0 and 1, successes only."""

    name: Literal["sft"]


Objective = Annotated[AwrSettings | GrpoSettings | SftSettings, Field(discriminator="name")]


class LearnerSettings(Settings):
    """How groups become weights."""

    ranks: PositiveInt = 1
    """Training processes; each is a Ray actor with one device."""
    zero: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""
    cpus: NonNegativeFloat = 1.0
    """Ray CPUs of one rank."""
    gpus: NonNegativeFloat = 0.0
    """Ray GPUs of one rank; above 0 it trains on CUDA."""
    batch_groups: PositiveInt = 32
    """Groups an optimizer step: one batch is one step is one weights version."""
    max_staleness: NonNegativeInt = 1
    """eta: most steps between the weights that sampled a token and those that learn from it."""
    row_tokens: PositiveInt = 1024
    """Length of a packed row, and of the longest sequence: longer ones lose their end (counted as truncated)."""
    micro_tokens: PositiveInt = 4096
    """Tokens of one forward pass of one rank: a multiple of row_tokens."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel. On CPU with a small model and short rows, eager is the fastest."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerSettings = OptimizerSettings()
    credit: CreditSettings = CreditSettings()
    objective: Objective = GrpoSettings(name="grpo")
    average: Literal["token", "turn"] = "token"
    """token: every token weighs the same. turn: every turn does, with the mean over its tokens (RISE)."""
    roles: dict[str, NonNegativeFloat] = {role.name.lower(): 1.0 for role in TRAINED_ROLES}
    """Weight of the tokens of each role in the loss; a role that is not named is not trained."""
    logprob_chunk: PositiveInt = 4096
    """Tokens whose float32 logits exist at once."""
    claim_deadline_s: PositiveFloat = 600.0
    """Longest wait for a batch before the run stops and says who was waited for."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; one is also written at the end and on stop."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    threads: PositiveInt = 1
    """CPU threads of a rank."""
    probe_tokens: Annotated[int, Field(ge=2)] = 32
    """Length of the sequence by which actors prove that they compute with the published weights."""

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, roles: dict[str, float]) -> dict[str, float]:
        known = [role.name.lower() for role in TRAINED_ROLES]
        unknown = sorted(set(roles) - set(known))
        if unknown:
            raise ValueError(f"roles: {', '.join(unknown)} cannot be trained. Choose from {', '.join(known)}")
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
        if self.attention == "flash_attention_2" and self.micro_tokens != self.row_tokens:
            raise ValueError(
                "attention: flash_attention_2 keeps packed sequences apart in a single row only. "
                "Set micro_tokens to row_tokens, or attention to sdpa"
            )
        if self.objective.name == "grpo" and self.objective.kl > 0 and self.zero == 3:
            raise ValueError(
                "objective.kl above 0 puts a whole copy of the start model on every rank, which zero: 3 is there to "
                "avoid. Set zero to 2, or objective.kl to 0"
            )
        return self

    def role_weight(self, role: Role) -> float:
        return self.roles.get(role.name.lower(), 0.0)
