"""Results for people: what each figure of an evaluation is called and means, the table on the terminal, remarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.batches.responses import told
from protocols.evaluation import NOTHING, ActionFigures, AnswerFigures, EvaluationSummary, Figure, PassFigures

if TYPE_CHECKING:
    from rich.table import Table

WITH_FEEDBACK = (
    "The environment's feedback says whether an answer is right: "
    "this is improvement with feedback, not intrinsic self-correction."
)
OF = "of "
"""Before the label of an environment, in the section of its figures."""
WIDE = 110  # columns of a terminal


@dataclass(frozen=True, slots=True)
class Name:
    """What a figure is called. `turn` picks one of a figure that there is for each turn."""

    key: str
    label: str
    meaning: str
    turn: int | None = None

    def of(self, figures: PassFigures | None) -> Figure:
        """That figure of a pass; one over nothing where the pass, or the figure, is not there."""
        if self.turn is None:
            return getattr(figures, self.key, NOTHING)
        by_turn = getattr(figures, self.key, ())
        return by_turn[self.turn] if self.turn < len(by_turn) else NOTHING


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of the table of results. `section` is "sampled", "greedy", the label of a control, or that of an
    environment after OF."""

    label: str
    meaning: str
    before: Figure
    after: Figure
    section: str = "sampled"

    @property
    def change(self) -> Figure:
        """After minus before. Its error takes the two as independent: cautious, since they share their tasks."""
        (old, old_se), (new, new_se) = self.before, self.after
        if old is None or new is None:
            return NOTHING
        return Figure(new - old, None if old_se is None or new_se is None else math.hypot(old_se, new_se))


def rows(before: EvaluationSummary | None, after: EvaluationSummary | None) -> list[ResultRow]:
    """What the table of results shows, of either or both evaluations."""
    known = before or after
    if known is None:
        return []
    found = [
        ResultRow(name.label, name.meaning, name.of(old), name.of(new), section)
        for section, old, new in passes(before, after)
        for name in names(known)
    ]
    return [row for row in found if row.before.value is not None or row.after.value is not None]


def passes(
    before: EvaluationSummary | None, after: EvaluationSummary | None
) -> Iterator[tuple[str, PassFigures | None, PassFigures | None]]:
    """(label, before, after) of each pass: sampled, greedy, the controls; and of each environment of several."""
    yield "sampled", before and before.sampled, after and after.sampled
    yield "greedy", before and before.greedy, after and after.greedy
    old, new = (summary.controls if summary else {} for summary in (before, after))
    for label in {**old, **new}:
        yield label, old.get(label), new.get(label)
    old, new = (summary.environments if summary else {} for summary in (before, after))
    for label in {**old, **new}:
        yield OF + label, old[label].figures if label in old else None, new[label].figures if label in new else None


def names(summary: EvaluationSummary) -> list[Name]:
    """The figures of such a summary, in the order in which people read them."""
    spread = {"": 2, "turns": summary.turns, "k": summary.k}
    by_turn = summary.turns if summary.kind == "answers" else 0
    found = [Name("accuracy_by_turn", f"turn {t + 1}", _AT_TURN if t else _AT_FIRST, t) for t in range(by_turn)]
    for key, (label, meaning, over) in summary.sampled.captions().items():
        if spread[over] > 1:
            label, meaning = (text.format(turns=summary.turns, k=summary.k) for text in (label, meaning))
            found.append(Name(key, label, meaning))
    return found


_AT_FIRST, _AT_TURN = "right at the first answer", "right at this turn"


def main(summary: EvaluationSummary) -> Name:
    """The figure that says how good a model is: right at the last turn, or success."""
    if summary.kind == "actions":
        return names(summary)[0]
    return Name("accuracy_by_turn", f"turn {summary.turns}", "right at the last turn", summary.turns - 1)


def remarks(before: EvaluationSummary | None, after: EvaluationSummary | None, feedback: str) -> list[str]:
    """What an honest reader has to be told beside the figures. `feedback` as in environment.feedback."""
    known = after or before
    if known is None:
        return []
    answers = known.kind == "answers"
    found = [WITH_FEEDBACK] if answers and known.turns > 1 and feedback != "blank" else []
    if before and after and before.k > 1:
        found += _independent(before, after)
    if spent := _generations(known):
        found.append(spent)
    named = (("before", before), ("after", after)) if before and after else (("", known),)
    for when, summary in named:
        if said := told(summary.sampled.responses):
            found.append(f"Answers{' ' * bool(when)}{when}: {said}.")
    told_of = [summary for summary in (before, after) if summary]
    if errors := sum(summary.errors for summary in told_of):
        share = errors / sum(summary.episodes for summary in told_of)
        found.append(f"{errors} episodes ({share:.1%}) broke off with an error; they are left out of the figures.")
    return found


def _independent(before: EvaluationSummary, after: EvaluationSummary) -> list[str]:
    """What as many independent tries of the model before training come to."""
    turns, k, old, new = after.turns, before.k, before.sampled, after.sampled
    if isinstance(old, ActionFigures) and isinstance(new, ActionFigures):
        return [
            f"One episode after training succeeds in {_share(new.success)} of the tasks; any of {k} independent "
            f"episodes of the model before training (its pass@{k}) does in {_share(old.pass_k)}."
        ]
    if turns == 1 or not isinstance(old, AnswerFigures) or not isinstance(new, AnswerFigures):
        return []
    cost = "with equally many answers" if k == turns else f"with {k} answers instead of {turns}"
    return [
        f"Any of {turns} turns of one episode after training is right in {_share(new.any_turn)} of the tasks; any of "
        f"{k} independent answers of the model before training (its pass@{k}) is in {_share(old.pass_k)}, {cost}."
    ]


def _share(figure: Figure) -> str:
    return "an unknown share" if figure.value is None else f"{figure.value:.3f}"


def _generations(summary: EvaluationSummary) -> str:
    """What one pass costs, to compare methods at equal numbers of generations."""
    if not summary.generations or not summary.n:
        return ""
    listed = ", ".join(f"{label} {count / summary.n:.1f}" for label, count in summary.generations.items())
    return f"Generations a test task, by pass: {listed}."


def shown(figure: Figure, sign: str = "") -> str:
    """ "0.512 ± 0.022", or "-" where there is nothing to show."""
    value, error = figure
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def heading(section: str) -> str:
    if section.startswith(OF):
        return f"of environment {section.removeprefix(OF)}"
    return "greedy (temperature 0)" if section == "greedy" else f"control: {section}"


def table(before: EvaluationSummary | None, after: EvaluationSummary | None, feedback: str, width: int = 120) -> Table:
    """The results for the terminal: each figure before and after with its standard error, and the change.

    What a figure means is said where the terminal is wide enough.
    """
    from rich import box
    from rich.table import Table

    known = before or after
    both = before is not None and after is not None
    caption = "\n".join(remarks(before, after, feedback))
    title = f"{known.n if known else 0} test tasks, ± standard error"
    drawn = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("", no_wrap=True)
    for header, wanted in (("before", before), ("after", after), ("change", both)):
        if wanted:
            drawn.add_column(header if both or header == "change" else "result", justify="right", no_wrap=True)
    explained = width >= WIDE
    if explained:
        drawn.add_column("meaning", style="dim")
    section = "sampled"
    for row in rows(before, after):
        if row.section != section:
            drawn.add_section()
            section = row.section
        figures = [shown(row.before)] * (before is not None) + [shown(row.after)] * (after is not None)
        change = [shown(row.change, "+")] * both
        meaning = row.meaning if section == "sampled" else f"as above, {heading(section)}"
        label = row.label if section == "sampled" else f"{section} {row.label}"
        drawn.add_row(label, *figures, *change, *[meaning] * explained)
    return drawn
