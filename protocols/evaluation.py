"""What an evaluation found: figures with their standard errors, of each pass over the test tasks, and the line of it.

    evaluation   EvaluationSummary ----> summary.json (before, after), tables, trackers, causes
    controller   EvaluationLine    ----> evaluations.jsonl ----> report, compare, model card

In JSON the figures of the sampled pass lie at the top, their standard errors under the same keys in `se`; `greedy` and
each of `controls` are such maps too. A figure over nothing is null. To add a figure, declare it here and fill it in
redraft/evaluation/episodes.py: its key, its row in every table and its name at trackers follow.

The measures of answers are those of RISE (arXiv 2407.18219), which writes the majority of k first answers as mk@t1, any
of them right as pk@t1, and the same over the T turns of one episode as m1@tT and p1@tT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

from protocols.responses import Responses

Kind = Literal["answers", "actions"]
"""Each turn of an episode is a whole answer, or an episode is many actions."""


class Figure(NamedTuple):
    """A value with its standard error; None where there is nothing to measure it by."""

    value: float | None = None
    error: float | None = None


NOTHING = Figure()
FigureTree = Figure | tuple[Figure, ...] | Mapping[str, Figure]


class Caption(NamedTuple):
    """What tables call a figure; {turns} and {k} stand for those of the evaluation.

    `over` says what it is taken over beside tasks: with one turn, or one independent try, it would repeat another one.
    """

    label: str
    meaning: str
    over: Literal["", "turns", "k"] = ""


def figure(label: str, meaning: str, over: Literal["", "turns", "k"] = "") -> Any:
    """A field of a pass, with its caption."""
    return field(default=NOTHING, metadata={"caption": Caption(label, meaning, over)})


class _Pass:
    """Base of the figures of one pass."""

    __slots__ = ()
    kind: ClassVar[Kind]

    @classmethod
    def captions(cls) -> dict[str, Caption]:
        """By key, in the order in which people read them, those that tables show in one row."""
        found = {one.name: one.metadata.get("caption") for one in _fields(cls)}
        return {key: caption for key, caption in found.items() if caption is not None}

    def to_json(self) -> dict[str, Any]:
        """Figures over independent tries are left out of a pass that has none."""
        captions = self.captions()
        kept = {
            key: getattr(self, key)
            for key in _keys(type(self))
            if getattr(self, key) != NOTHING or key not in captions or captions[key].over != "k"
        }
        values = {key: _part(found, 0) for key, found in kept.items()}
        errors = {key: _part(found, 1) for key, found in kept.items()}
        return values | self.responses.to_json() | {"se": errors}  # pyright: ignore[reportAttributeAccessIssue]  below

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What the map lacks is a figure over nothing."""
        errors = found.get("se") or {}
        known = {key: _joined(found[key], errors.get(key)) for key in _keys(cls) if key in found}
        return cls(**known, responses=Responses.from_json(found))  # pyright: ignore[reportCallIssue]  a dataclass


@dataclass(frozen=True, slots=True)
class AnswerFigures(_Pass):
    """One pass of episodes whose turns are answers. Answers for which the context had no room count as wrong."""

    kind: ClassVar[Kind] = "answers"
    accuracy_by_turn: tuple[Figure, ...] = ()
    keep_rate: Figure = figure("keep rate", "right, and right again at the next turn")
    fix_rate: Figure = figure("fix rate", "wrong, and right at the next turn")
    """With two turns, the success of the second try given a failed first one."""
    repeat_rate: Figure = figure("repeat rate", "wrong, and the same wrong answer again")
    majority_turns: Figure = figure(
        "majority of {turns} turns", "the most common answer of one episode is right (m1@t{turns} in RISE)", "turns"
    )
    any_turn: Figure = figure(
        "any of {turns} turns", "right at some turn of one episode (p1@t{turns} in RISE)", "turns"
    )
    pass_k: Figure = figure("pass@{k}", "any of {k} independent first answers is right (p{k}@t1 in RISE)", "k")
    majority_k: Figure = figure("majority@{k}", "the most common of {k} first answers is right (m{k}@t1 in RISE)", "k")
    blind_fix: Figure = figure(
        "fix rate, blind", "one of {k} independent first answers is wrong, another one right", "k"
    )
    """The chance that a fix rate has to exceed: of another try that knows nothing of the first."""
    blind_keep: Figure = figure(
        "keep rate, blind", "one of {k} independent first answers is right, another one, too", "k"
    )
    responses: Responses = field(default_factory=Responses)


@dataclass(frozen=True, slots=True)
class ActionFigures(_Pass):
    """One pass of episodes of many actions."""

    kind: ClassVar[Kind] = "actions"
    success: Figure = figure("success", "the last action reached the goal")
    success_after_error: Figure = figure("success after an error", "of the episodes in which an action was refused")
    error_share: Figure = figure("share with an error", "episodes in which an action was refused")
    loop_rate: Figure = figure("share with a loop", "episodes with the same actions twice in a row")
    actions: Figure = figure("actions", "mean number in an episode")
    pass_k: Figure = figure("pass@{k}", "any of {k} independent episodes succeeds", "k")
    loops: Mapping[str, Figure] = field(default_factory=dict)
    """By length, how many an episode has."""
    responses: Responses = field(default_factory=Responses)


PassFigures = AnswerFigures | ActionFigures
PASSES: dict[Kind, type[AnswerFigures] | type[ActionFigures]] = {
    "answers": AnswerFigures,
    "actions": ActionFigures,
}


@dataclass(frozen=True, slots=True)
class EnvironmentFigures:
    """The sampled pass over the `n` tasks of one environment, of a run of several; `errors` of them broke off."""

    n: int
    errors: int
    figures: PassFigures

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "errors": self.errors, **self.figures.to_json()}


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """All passes of one evaluation over `n` test tasks."""

    n: int
    turns: int
    """Answers, or most actions, in an episode."""
    k: int
    """Independent first answers of a task, or independent episodes of many actions; 1 where there is but the one of the
    sampled episode."""
    sampled: PassFigures
    errors: int = 0
    """Episodes of all passes that broke off, because the environment failed: their tasks are in no figure."""
    generations: Mapping[str, int] = field(default_factory=dict)
    """Sampled responses of each pass, so that methods can be compared at equal numbers of them."""
    greedy: PassFigures | None = None
    controls: Mapping[str, PassFigures] = field(default_factory=dict)
    environments: Mapping[str, EnvironmentFigures] = field(default_factory=dict)
    """By label, of a run of several."""

    @property
    def kind(self) -> Kind:
        return self.sampled.kind

    @property
    def solved(self) -> Figure:
        """The share of test tasks whose last answer is right, or whose episode succeeds."""
        sampled = self.sampled
        if isinstance(sampled, ActionFigures):
            return sampled.success
        return sampled.accuracy_by_turn[-1] if sampled.accuracy_by_turn else NOTHING

    @property
    def episodes(self) -> int:
        """Episodes of all passes."""
        return self.n * (self.k + (self.greedy is not None) + len(self.controls))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "n": self.n,
            "turns": self.turns,
            "k": self.k,
            **self.sampled.to_json(),
            "errors": self.errors,
            "generations": dict(self.generations),
            "greedy": None if self.greedy is None else self.greedy.to_json(),
            "controls": {label: figures.to_json() for label, figures in self.controls.items()},
            "environments": {label: figures.to_json() for label, figures in self.environments.items()},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> EvaluationSummary:
        """What the map lacks is empty."""
        figures = PASSES.get(found.get("kind", "answers"), AnswerFigures)
        greedy = found.get("greedy")
        return cls(
            n=found.get("n", 0),
            turns=found.get("turns", 1),
            k=found.get("k", 1),
            sampled=figures.from_json(found),
            errors=found.get("errors", 0),
            generations=found.get("generations") or {},
            greedy=None if greedy is None else figures.from_json(greedy),
            controls={label: figures.from_json(one) for label, one in (found.get("controls") or {}).items()},
            environments={
                label: EnvironmentFigures(one["n"], one["errors"], figures.from_json(one))
                for label, one in (found.get("environments") or {}).items()
            },
        )


@dataclass(frozen=True, slots=True)
class EvaluationLine:
    """A line of evaluations.jsonl: which evaluation it was, of which weights, how long it took, what it found."""

    label: str
    """before, during, after, or eval."""
    step: int
    version: int
    seconds: float
    summary: EvaluationSummary
    overrides: tuple[str, ...] = ()
    """What `redraft eval` was told to do otherwise than the run: KEY=VALUE each."""

    def to_json(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "summary"}
        return facts | self.summary.to_json()

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> EvaluationLine:
        """Raises KeyError for a line that does not say which evaluation it is."""
        version, seconds = line.get("version", 0), line.get("seconds", 0.0)
        summary, overrides = EvaluationSummary.from_json(line), tuple(line.get("overrides", ()))
        return cls(line["label"], line["step"], version, seconds, summary, overrides)


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls)


def _keys(cls: type) -> list[str]:
    return [one.name for one in _fields(cls) if one.name != "responses"]


def _part(found: FigureTree, part: int) -> Any:
    if isinstance(found, Mapping):
        return {key: one[part] for key, one in found.items()}
    return found[part] if isinstance(found, Figure) else [one[part] for one in found]


def _joined(values: Any, errors: Any) -> FigureTree:
    if isinstance(values, Mapping):
        return {key: Figure(value, (errors or {}).get(key)) for key, value in values.items()}
    if isinstance(values, list):
        return tuple(Figure(*pair) for pair in zip(values, errors or [None] * len(values), strict=True))
    return Figure(values, errors)
