"""What in a few scored and played tasks would keep a run from learning, in sentences with their cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actors.door import EpisodeFailure, Outcome
from protocols.turns import ASIDES, TOO_LONG, Role, Stop
from redraft.cli.doctor_play import Played, Scored
from redraft.recipe import Recipe

MANY = 0.1  # of all answers: a share of cut ones that is worth a warning
MOST = 0.5
SHOWN = 60  # characters of an answer


@dataclass(frozen=True, slots=True)
class Finding:
    """`serious`: the run would learn nothing, or the wrong thing."""

    serious: bool
    what: str
    cure: str


def findings(recipe: Recipe, played: Played) -> list[Finding]:
    """The most serious first."""
    found = [*_of_rewards(played.scored), *_of_play(recipe, played), *_of_variation(recipe, played)]
    return sorted(found, key=lambda finding: not finding.serious)


def _of_rewards(scored: Sequence[Scored]) -> Iterator[Finding]:
    broken = [one.empty for one in scored if isinstance(one.empty, EpisodeFailure)]
    broken += [one.right for one in scored if isinstance(one.right, EpisodeFailure)]
    if broken:
        tried = len(scored) + sum(one.right is not None for one in scored)
        what = f"{len(broken)} of {tried} answers could not be scored: {broken[0]}"
        yield Finding(True, what, "Cure it in the reward or the environment: such an episode counts for nothing")
    both = [one for one in scored if isinstance(one.right, Outcome) and isinstance(one.empty, Outcome)]
    alike = [one for one in both if one.right.reward <= one.empty.reward]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    if alike:
        one = alike[0]
        assert isinstance(one.right, Outcome) and isinstance(one.empty, Outcome)
        what = (
            f"the reference answer is paid no more than an empty one in {len(alike)} of {len(both)} tasks: "
            f"{one.task} pays {one.right.reward:g} for {_shown(one.reference)}, {one.empty.reward:g} for nothing"
        )
        yield Finding(True, what, "Look at the reward with these two answers")
    wrong = [one for one in both if isinstance(one.right, Outcome) and not one.right.success and one not in alike]
    if wrong:
        one = wrong[0]
        assert isinstance(one.right, Outcome)
        what = (
            f"{len(wrong)} of {len(both)} reference answers do not count as right: {one.task}, {_shown(one.reference)}"
        )
        yield Finding(True, what, "A reward of 1 or more is right; a map may say `success` itself")
    paid = [one for one in scored if isinstance(one.empty, Outcome) and one.empty.success]
    if paid:
        what = f"an empty answer counts as right in {len(paid)} of {len(scored)} tasks, {paid[0].task} for one"
        yield Finding(True, what, "Have the reward pay for no empty text")


def _of_play(recipe: Recipe, played: Played) -> Iterator[Finding]:
    answers = [turn for turn in played.turns if turn.stop in (Stop.END, Stop.LENGTH) and turn.role is not Role.ERROR]
    errors = [turn for turn in played.turns if turn.role is Role.ERROR]
    if long := [turn for turn in errors if turn.extra.get("kind") == TOO_LONG]:
        what = f"{len(long)} episodes no longer fitted actors.engine.max_length={recipe.actors.engine.max_length}"
        yield Finding(len(long) > len(played.groups), what, "Raise it with learner.row_tokens, or play fewer turns")
    if broken := [turn for turn in errors if turn.extra.get("kind") != TOO_LONG]:
        what = f"{len(broken)} episodes broke off, the first by: {broken[0].extra.get('error')}"
        yield Finding(True, what, "Cure it there: such an episode counts for nothing")
    cut = [turn for turn in answers if turn.stop is Stop.LENGTH]
    if answers and len(cut) > MANY * len(answers):
        lengths = [len(turn.response) for turn in answers]
        what = (
            f"{len(cut)} of {len(answers)} answers were cut at sampling.max_tokens={recipe.sampling.max_tokens} "
            f"(the median has {int(np.median(lengths))} tokens)"
        )
        yield Finding(len(cut) > MOST * len(answers), what, "Raise it, or ask for shorter answers")
    known = [turn for turn in answers if "parsed" in turn.extra]
    unread = [turn for turn in known if not turn.extra["parsed"]]
    if known and len(unread) > MOST * len(known):
        what = f"no answer was found in {len(unread)} of {len(known)} responses"
        yield Finding(False, what, "Say in the question how the answer has to be marked")
    if played.longest:
        what = f"{played.longest} sequences are longer than learner.row_tokens={recipe.learner.row_tokens}, and cut"
        yield Finding(False, what, "Raise it")
    if played.problem:
        yield Finding(True, f"nothing would be trained: {played.problem}", "See the dialogues below")
    if not played.groups:
        what = f"no group of {played.asked} came to its end in {played.seconds:.0f} s"
        yield Finding(False, what, "Give --seconds more, or a smaller model for a first look")


def _of_variation(recipe: Recipe, played: Played) -> Iterator[Finding]:
    if not played.groups or not recipe.steps:
        return
    flat = sum(spread == 0 for spread in played.spreads)
    if flat == len(played.groups):
        turns = [turn for turn in played.turns if turn.role not in (Role.ERROR, *ASIDES)]
        worth = {turn.reward for turn in turns}
        each = f"every answer is paid {worth.pop():g}" if len(worth) == 1 else "each group is paid alike throughout"
        what = f"no group of {flat} would vary: {each}, so that comparing answers teaches nothing"
        yield Finding(True, what, "Easier or harder tasks, a reward with parts, more episodes, or another model")
    elif flat > MOST * len(played.groups):
        what = f"{flat} of {len(played.groups)} groups would not vary: their answers are paid alike"
        yield Finding(False, what, "Expect slow learning; easier or harder tasks, or a reward with parts")


def _shown(text: str | None) -> str:
    said = repr(text)
    return said if len(said) <= SHOWN else said[:SHOWN] + "..."
