"""Batches: claimed groups made ready for the ranks, with what a step reports of them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learner import journal
from learner.batches.linearise import linearise
from learner.batches.packing import MicroBatch
from learner.batches.responses import responses_of
from learner.batches.updates import divide
from learner.config import LearnerSettings
from learner.credits import credit, scored, telling
from learner.credits.attributing import flagged
from learner.objectives import make
from learner.sequences import Linearised, Shares, brought_along
from learner.transcripts.store import sample
from protocols.errors import RedraftError
from protocols.reports import BatchReport
from protocols.turns import MIXED_FROM, Group, Role, Turn, role_name, sampled_tokens
from protocols.weights import staleness


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: micro-batches of each rank, in the order of its optimizer steps, the groups to commit with their
    priorities (the mean size of a turn's advantage, 0 where it is not trained), what the step reports of it, and what
    the transcripts and, where there is one, the journal keep."""

    ids: list[bytes]
    priorities: list[float]
    micros: list[list[MicroBatch]]
    report: BatchReport
    kept: list[tuple[dict, list[dict]]]
    journal: dict[str, Any] | None
    pack_s: float


def prepare(
    groups: Sequence[Group],
    step: int,
    settings: LearnerSettings,
    importance: np.ndarray | None = None,
    seed: int = 0,
) -> Batch:
    """Credit, linearise, weigh and pack the groups that a trainer at `step` steps is going to train on.

    `importance` float32[groups] scales the loss of each group, as replay's sampler asks for (None: all by 1); `seed` is
    the run's, by which groups are dealt to minibatches.
    Raises RedraftError when every episode in them ended with an error: there is nothing to learn from, and will not be.
    """
    turns = [turn for group in groups for turn in group.turns]
    errors = [turn for turn in turns if turn.role is Role.ERROR]
    if turns and len(errors) == len(turns):
        raise RedraftError(
            f"every episode of a batch ended with an error. The last was: {errors[-1].extra.get('error')}"
        )
    start = time.monotonic()
    advantages, objective = credit(groups, settings.credit.at(step)), make(settings.objective)
    lines = linearise(groups, advantages, settings, objective)
    updates = divide(lines, len(groups), settings, objective, importance=importance, seed=seed, step=step)
    packed, shares = updates.packed, updates.shares
    sequences, trained_turns = trained_of(lines, shares)
    report = replace(
        report_of(groups, step),
        sequences=sequences,
        trained_turns=trained_turns,
        tokens=packed.tokens,
        padding_share=packed.padding / packed.tokens if packed.tokens else None,
        truncated_sequences=lines.truncated,
        errors=len(errors),
        **_flags(groups, settings),
    )
    priorities = [float(np.abs(np.nan_to_num(values)).mean()) if len(values) else 0.0 for values in advantages]
    kept = sample(groups, advantages, lines, shares, settings.record.groups, step)
    ids = [group.id for group in groups]
    written = journal.packed(groups, importance) if settings.record.batches else None
    return Batch(ids, priorities, packed.micros, report, kept, written, time.monotonic() - start)


def report_of(groups: Sequence[Group], step: int) -> BatchReport:
    """Rewards of the model's own attempts (all, by turn number, by role), the staleness of each group, which is that of
    its oldest token, and what responses look like (see `responses_of`). A figure over nothing is None."""
    turns = [turn for group in groups for turn in group.turns]
    told = [_attempts(group) for group in groups]
    attempts = [turn for own in told for turn in own]
    rewards, successes, roles, parts = (defaultdict(list) for _ in range(4))
    mixed, apart = Counter(), defaultdict(list)
    for group, own in zip(groups, told, strict=True):
        if (label := group.extra.get(MIXED_FROM)) is not None:
            mixed[label] += 1
            apart[label] += own
    for turn in attempts:
        rewards[turn.index].append(turn.reward)
        roles[role_name(turn)].append(turn.reward)
        for name, value in (turn.extra.get("parts") or {}).items():
            parts[name].append(float(value))
        if "success" in turn.extra:
            successes[turn.index].append(bool(turn.extra["success"]))
    told_of = [bool(turn.extra.get("navigated")) for turn in turns if turn.role is not Role.ERROR]
    ages = [age for group in groups if (age := _staleness(group, step)) is not None]
    return BatchReport(
        groups=len(groups),
        turns=len(turns),
        sampled_tokens=sum(map(sampled_tokens, turns)),
        reward=float(np.mean([turn.reward for turn in attempts])) if attempts else None,
        reward_by_index=[float(np.mean(rewards[index])) for index in sorted(rewards)],
        reward_by_role=_means(roles),
        success_by_index=[float(np.mean(successes[index])) for index in sorted(successes)],
        reward_parts=_means(parts),
        groups_by_environment=dict(sorted(mixed.items())),
        reward_by_environment=_means({label: [t.reward for t in own] for label, own in apart.items()}),
        success_by_environment=_means(
            {label: [bool(t.extra["success"]) for t in own if "success" in t.extra] for label, own in apart.items()}
        ),
        navigated_share=float(np.mean(told_of)) if any(told_of) else None,
        staleness_mean=float(np.mean(ages)) if ages else None,
        staleness_max=max(ages, default=None),
        staleness_counts={str(age): count for age, count in sorted(Counter(ages).items())},
        responses=responses_of(turns),
    )


def _flags(groups: Sequence[Group], settings: LearnerSettings) -> dict[str, float | None]:
    """How many steps have a flag, where the credit reads them."""
    if not settings.credit.facts.reads_flags:
        return {}
    steps, flags, good = flagged(groups)
    return {"flagged_share": flags / steps if steps else None, "good_share": good / flags if flags else None}


def _means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of those that hold something, in the order of their names."""
    return {name: float(np.mean(values)) for name, values in sorted(found.items()) if values}


def _attempts(group: Group) -> list[Turn]:
    """Scored turns that the model sampled, after a failed answer that its task brought along also that one. Copies,
    demonstrations and what a teacher wrote say nothing of how good the model is, nor do episodes that broke off or were
    told experience."""
    turns = telling(group.turns)
    alone = [turn for turn in turns if not turn.extra.get("navigated")]
    own = [turn for turn in alone if scored(turn) and not np.isnan(turn.logprobs).all()]
    return [*filter(brought_along, turns), *own] if own else []


def trained_of(lines: Linearised, shares: Sequence[Shares]) -> tuple[int, dict[str, int]]:
    """How many sequences hold a token that the loss weighs, and how many such turns there are of each role."""
    weighed = [sequence.turns[share.loss > 0] for sequence, share in zip(lines.sequences, shares, strict=True)]
    roles = Counter(role_name(lines.turns[turn]) for turns in weighed for turn in np.unique(turns))
    return sum(bool(len(turns)) for turns in weighed), dict(sorted(roles.items()))


def _staleness(group: Group, step: int) -> int | None:
    return max((staleness(step, version) for turn in group.turns for _, version in turn.versions), default=None)
