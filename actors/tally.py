"""What an actor's play looks like in counts, also where none of it reaches the learner: groups that replay filters.

And what can be seen of a chat template that was not applied: the control tokens of a chat model, in its tokenizer or in
its answers, and no template that knows them.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from actors.group import GroupWriter
from actors.rendering import Renderer
from protocols.turns import ASIDES, Role, Stop, Turn

TURN_END = re.compile(r"im_end|eot|eom|end_of_turn|end_of_message|<turn\||<\|(?:end|return)\|>")  # of chat formats
CHAT_NAME = re.compile(r"(?:^|[-_.])(?:instruct|chat|it)(?:$|[-_.])", re.IGNORECASE)
UNREACHED = re.compile(r"^\w*(?:Connect|Timeout|HTTP|URLError|gaierror|API|Disconnected|RateLimit)\w*:")
"""Failures, as "type: message", of whoever calls what does not answer: a judge or another endpoint."""

SUMS = (
    "foreign",
    "later_parsed",
    "later_unparsed",
    "groups",
    "flat",
    "flat_right",
    "right",
    "tokens",
    "nats",
    "scores",
    "episodes",
    "broken",
    "unreached",
)


@dataclass(slots=True)
class Tally:
    """Of training, not of evaluations. Counters are by role and of what the model itself sampled; `parsed` and
    `unparsed` only count answers of environments that say which, `later_` those after the first of an episode. `low`
    and `high` are the smallest and the largest of `scores` values by which groups are told flat; a group whose episodes
    all broke has none. `right` sums the success rates of all groups, `flat_right` of flat ones; `nats` are the negated
    log-probs of `tokens` sampled ones, whose mean is the entropy; `failure` is the last of those that `broken` counts,
    `unreached` those of endpoints.
    """

    responses: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    parsed: Counter[str] = field(default_factory=Counter)
    unparsed: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    """Responses that hold a control token which the chat template does not know."""
    later_parsed: int = 0
    later_unparsed: int = 0
    groups: int = 0
    flat: int = 0
    flat_right: float = 0.0
    right: float = 0.0
    tokens: int = 0
    nats: float = 0.0
    scores: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    episodes: int = 0
    broken: int = 0
    unreached: int = 0
    failure: str = ""

    def turn(self, turn: Turn, foreign: frozenset[int] = frozenset()) -> None:
        """Counts one turn; `foreign` are the ids of `foreign_ids`."""
        if turn.role is Role.ERROR:
            self.broken += 1
            self.failure = str(turn.extra.get("error", ""))
            self.unreached += turn.extra.get("kind") == "teacher" or bool(UNREACHED.match(self.failure))
            return
        if turn.stop is Stop.AUTHORED:
            return
        role = turn.role.name.lower()
        self.responses[role] += 1
        self.cut[role] += turn.stop is Stop.LENGTH
        if not turn.extra.get("navigated"):  # whose log-probs say nothing of how they were sampled
            self.tokens += len(turn.logprobs)
            self.nats -= float(turn.logprobs.sum())
        if foreign:
            self.foreign += not foreign.isdisjoint(turn.response.tolist())
        if turn.role not in ASIDES and "parsed" in turn.extra:
            (self.parsed if turn.extra["parsed"] else self.unparsed)[role] += 1
            if turn.index > 0:
                self.later_parsed += bool(turn.extra["parsed"])
                self.later_unparsed += not turn.extra["parsed"]

    def group(self, writer: GroupWriter) -> None:
        """Counts a group that was closed."""
        self.episodes += writer.episodes
        if writer.success is None:
            return
        values = writer.compared_values
        self.groups += 1
        self.right += writer.success
        self.scores += len(values)
        self.low, self.high = min([self.low, *values]), max([self.high, *values])
        if writer.spread == 0:
            self.flat += 1
            self.flat_right += writer.success

    def add(self, other: Tally) -> None:
        """Takes in the counts of a later one."""
        for name in ("responses", "cut", "parsed", "unparsed"):
            getattr(self, name).update(getattr(other, name))
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.failure = other.failure or self.failure

    @property
    def entropy(self) -> float | None:
        """Nats a token, estimated from what was sampled (at the sampling temperature); None where nothing was."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def empty(self) -> bool:
        return not (self.responses or self.groups or self.episodes or self.broken)


def foreign_ids(renderer: Renderer) -> frozenset[int]:
    """Ids of control tokens that neither occur in the tokenizer's chat template nor end an answer, nor stand for
    padding or what is unknown: a model that answers with them was trained on another format."""
    tokenizer = renderer.tokenizer
    own = {tokenizer.pad_token_id, tokenizer.unk_token_id, *renderer.ends}
    template = str(tokenizer.chat_template or "")
    known = {tokenizer.bos_token_id} if template else set()
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(n for n, token in added if token.special and token.content not in template) - own - known


def untemplated(renderer: Renderer, folder: Path) -> str:
    """Why this looks like a chat model whose template is missing; "" where there is one, or it looks like none."""
    tokenizer = renderer.tokenizer
    if tokenizer.chat_template:
        return ""
    ends = [token for n in renderer.ends if TURN_END.search(token := tokenizer.decode([n]))]
    if ends:
        return f"its answers end with {ends[0]}, as those of chat models do"
    names = [part for part in (folder.name, *folder.parts) if part == folder.name or part.startswith("models--")]
    return next((f"it is called {name}, as chat models are" for name in names if CHAT_NAME.search(name)), "")
