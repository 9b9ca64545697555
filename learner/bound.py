"""The staleness bound of a run: `learner.max_staleness`, or with `auto` the one that makes the most of learner and
samples, found while the run trains.

What staleness costs is measured in each step: with importance ratios r of n tokens the share (sum r)^2 / (n sum r^2)
of them is effective, the rest adds noise alone. What too small a bound costs is measured, too: the share of the step in
which the learner waited while the bound kept actors from playing. Their product

    worth(b) = effective samples(b) * (1 - waited(b))

is how much of itself the learner puts into effective samples: 1 were it never to wait and were all samples fresh. A
bound that rises makes the second factor larger and the first smaller. Each step says at which bound, among those
up to one above, the worth would have been the largest:

- Effective samples at another bound: those of the step, by the same factor for each step of staleness as from the
  freshest groups to those of the step. Freshest are those at bound 0, where every run begins: what trainer and sampler
  differ by anyway is laid to no bound. Where the next bound was tried, they are no more than they were there.
- Waiting at another bound is what was measured there last. One above all that were tried may spare all of it, as far as
  anybody knows: where the present bound is worth more than those below, it is tried, and left again unless it pays.
- Of bounds that are worth the same the smallest is taken: fresher groups cost nothing then.

No number of it is tuned. The bound moves when AGREED steps in a row say so; steps that are trained on groups of the
bound before do not count. It rises by one, for what lies further up was not seen, and falls at once to the largest
bound that those steps asked for. A bound that did not pay is tried again in a run twice as long, so that such tries
are as few as the logarithm of its steps. It stays at or below `most`, what actors can hold in play: a larger one
would let groups grow old in replay for nothing. While replay is full, actors are not held by the bound, and it rises
no further.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

AGREED = 10
"""Steps in a row: of steps that would as soon say the one as the other, so many agree with a chance of 2 ** -10, the
one in a thousand by which the diagnosis of a run tells much from chance, too."""


def most_of(in_play: int, batch_groups: int) -> int:
    """The bound beyond which actors that hold so many groups at once could play no more: their batches, and the one
    that is claimed beside the one that is trained."""
    return -(-in_play // batch_groups) + 1


@dataclass(slots=True)
class Seen:
    """What was measured at a bound: the effective share of samples, and the share of the step that was waited; means
    over about the last AGREED steps there, of which step `until` was the last."""

    effective: float
    waited: float
    until: int


@dataclass(slots=True)
class State:
    """What a checkpoint keeps. `before` is the bound before this one, under which groups may be in play for
    `unsettled` steps more; since then `steps` were counted. `agreed` of them in a row ask for `aim`."""

    bound: int = 0
    before: int = 0
    unsettled: int = 0
    steps: int = 0
    agreed: int = 0
    aim: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)


class Bound:
    """That of one incarnation of a run. With a number it is that number for ever; with auto at most `most`."""

    def __init__(self, setting: int | Literal["auto"], most: int, kept: Mapping[str, Any] | None = None):
        """`kept` is what `state` was when the checkpoint was written, from which it goes on; a run that was resumed
        with a smaller `most` begins there."""
        self._auto, self._most = setting == "auto", most
        self._state = State(bound=0 if setting == "auto" else setting)
        if self._auto and kept:
            measured = {key: found for key, found in kept["seen"].items() if found["effective"] is not None}
            seen = {int(key): Seen(**found) for key, found in measured.items()}
            if all(lower in seen for lower in range(kept["bound"])):
                self._state = State(**{**kept, "seen": seen})
            else:  # what was measured is spoilt: it begins anew, with groups in play that are as old as they may be
                self._state = State(before=kept["bound"], unsettled=kept["bound"] + 1)
            if self._state.bound > most:
                self._move(most)

    @property
    def now(self) -> int:
        """Most steps between the weights that sample a group leased now and those that will learn from it."""
        return self._state.bound

    @property
    def of_claims(self) -> int:
        """The same of the groups that are claimed now: a bound that has fallen is not yet that of all in play."""
        return max(self._state.bound, self._state.before if self._state.unsettled else 0)

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON values; empty where the recipe says the bound."""
        return asdict(self._state) if self._auto else {}

    def stepped(self, step: int, effective: float | None, waited: float) -> None:
        """Step `step` is done. `effective` is the effective share of its samples (None, NaN: it had none), `waited` the
        share of its time that the learner waited while this bound held actors back."""
        state = self._state
        if not self._auto:
            return
        if state.unsettled:
            state.unsettled -= 1
            return
        if not effective or not math.isfinite(effective):  # of log-probs that are no numbers it is none
            return
        state.steps += 1
        here = state.seen.setdefault(state.bound, Seen(effective, waited, step))
        share = 1 / min(state.steps, AGREED)
        here.effective += share * (effective - here.effective)
        here.waited += share * (waited - here.waited)
        here.until = step
        asked = self._best(step, effective, waited)
        if _sign(asked - state.bound) != _sign(state.aim - state.bound):
            state.agreed, state.aim = 0, asked
        state.agreed += 1
        state.aim = max(state.aim, asked)
        if state.aim != state.bound and state.agreed >= AGREED:
            self._move(state.aim)

    def _best(self, step: int, effective: float, waited: float) -> int:
        """The bound that would have been worth the most in this step, the smallest of equals."""
        state = self._state
        bound, seen, ahead = state.bound, state.seen, state.bound + 1
        fresh = seen[0].effective if bound else effective
        a_step = min(1.0, effective / fresh) ** (1 / bound) if bound else 1.0
        worth = {lower: effective * a_step ** (lower - bound) * (1 - seen[lower].waited) for lower in range(bound)}
        worth[bound] = effective * (1 - waited)
        hoped = ahead not in seen or step >= 2 * seen[ahead].until
        if ahead <= self._most and not hoped:
            worth[ahead] = min(effective * a_step, seen[ahead].effective) * (1 - seen[ahead].waited)
        best = max(worth, key=lambda known: (worth[known], -known))
        if best == bound and ahead <= self._most and hoped and effective * a_step > worth[bound]:
            return ahead
        return best

    def _move(self, bound: int) -> None:
        state = self._state
        state.before, state.bound, state.aim = state.bound, bound, bound
        state.unsettled = max(state.before, bound) + 1
        state.steps = state.agreed = 0


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
