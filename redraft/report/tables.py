"""Results for people: what each figure of an evaluation is called and means, the table on the terminal, remarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.batches.responses import told
from protocols.reports import Responses
from redraft.evaluation.episodes import Figure

if TYPE_CHECKING:
    from rich.table import Table

WITH_FEEDBACK = (
    "The environment's feedback says whether an answer is right: "
    "this is improvement with feedback, not intrinsic self-correction."
)
WIDE = 110  # columns of a terminal
NOTHING: Figure = (None, None)


@dataclass(frozen=True, slots=True)
class Name:
    """What a figure is called. `turn` picks one of a figure that is a list."""

    key: str
    label: str
    meaning: str
    turn: int | None = None

    def of(self, summary: dict | None) -> Figure:
        """(value, standard error), each possibly None."""
        if not summary or summary.get(self.key) is None:
            return NOTHING
        value, error = summary[self.key], summary["se"][self.key]
        return (value, error) if self.turn is None else (value[self.turn], error[self.turn])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of results. `section` is "sampled", "greedy", or the label of a control."""

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
        return new - old, None if old_se is None or new_se is None else math.hypot(old_se, new_se)


def rows(before: dict | None, after: dict | None) -> list[Row]:
    """What the table of results shows, of either or both evaluations."""
    known = before or after
    if known is None:
        return []
    found = [
        Row(name.label, name.meaning, name.of(old), name.of(new), section)
        for section, old, new in _sections(before, after)
        for name in names(known)
    ]
    return [row for row in found if row.before[0] is not None or row.after[0] is not None]


def _sections(before: dict | None, after: dict | None) -> Iterator[tuple[str, dict | None, dict | None]]:
    yield "sampled", before, after
    old, new = before or {}, after or {}
    yield "greedy", old.get("greedy"), new.get("greedy")
    controls = old.get("controls") or {}, new.get("controls") or {}
    for label in dict.fromkeys([*controls[0], *controls[1]]):
        yield label, controls[0].get(label), controls[1].get(label)


def names(summary: dict) -> list[Name]:
    """The figures of such a summary, in the order in which people read them."""
    if acts(summary):
        return _of_actions(summary["independent"])
    return _of_answers(summary["turns"], summary["independent"])


def main(summary: dict) -> Name:
    """The figure that says how good a model is: right at the last turn, or success."""
    if acts(summary):
        return names(summary)[0]
    turns = summary["turns"]
    return Name("accuracy_by_turn", f"turn {turns}", "right at the last turn", turns - 1)


def acts(summary: dict) -> bool:
    """Whether it is of episodes of many actions."""
    return summary.get("kind") == "actions"


def _of_answers(turns: int, k: int) -> list[Name]:
    by_turn = [Name("accuracy_by_turn", f"turn {t + 1}", "right at this turn", t) for t in range(turns)]
    by_turn[0] = Name("accuracy_by_turn", "turn 1 (m1@t1)", "right at the first answer", 0)
    retried = [
        Name("keep_rate", "keep rate", "right, and right again at the next turn"),
        Name("fix_rate", "fix rate", "wrong, and right at the next turn"),
        Name("repeat_rate", "repeat rate", "wrong, and the same wrong answer again"),
        Name("m1_t5", f"m1@t{turns}", f"majority of the {turns} turns of one episode"),
        Name("p1_t5", f"p1@t{turns}", f"any of the {turns} turns of one episode is right"),
    ]
    independent = [
        Name("p5_t1", f"p{k}@t1", f"any of {k} independent first answers is right"),
        Name("m5_t1", f"m{k}@t1", f"majority of {k} independent first answers"),
    ]
    return by_turn + (retried if turns > 1 else []) + (independent if k > 1 else [])


def _of_actions(k: int) -> list[Name]:
    one = [
        Name("success", "success", "the last action reached the goal"),
        Name("success_after_error", "success after an error", "of the episodes in which an action was refused"),
        Name("error_share", "share with an error", "episodes in which an action was refused"),
        Name("loop_rate", "share with a loop", "episodes with the same actions twice in a row"),
        Name("actions", "actions", "mean number in an episode"),
    ]
    return one + [Name("p5_success", f"p{k}", f"any of {k} independent episodes succeeds")] * (k > 1)


def remarks(before: dict | None, after: dict | None, feedback: str) -> list[str]:
    """What an honest reader has to be told beside the figures. `feedback` as in environment.feedback."""
    known = after or before
    if known is None:
        return []
    found = [WITH_FEEDBACK] if not acts(known) and known["turns"] > 1 and feedback != "blank" else []
    if before and after and before["independent"] > 1:
        found += _actions_control(before, after) if acts(after) else _answers_control(before, after)
    if spent := _generations(known):
        found.append(spent)
    named = (("before", before), ("after", after)) if before and after else (("", known),)
    for when, summary in named:
        if answers := told(Responses.from_json(summary)):
            found.append(f"Answers{' ' * bool(when)}{when}: {answers}.")
    if errors := sum(summary["errors"] for summary in (before, after) if summary):
        lost = "they count by their last action" if acts(known) else "the answers that they lack count as wrong"
        found.append(f"{errors} episodes ended early with an error; {lost}.")
    return found


def _answers_control(before: dict, after: dict) -> list[str]:
    turns, k = after["turns"], before["independent"]
    if turns == 1:
        return []
    cost = "with equally many answers" if k == turns else f"with {k} answers instead of {turns}"
    return [
        f"p1@t{turns} after training is {after['p1_t5']:.3f}; {k} independent answers of the model before training "
        f"(its p{k}@t1) reach {before['p5_t1']:.3f} {cost}."
    ]


def _actions_control(before: dict, after: dict) -> list[str]:
    k = before["independent"]
    return [
        f"One episode after training succeeds in {after['success']:.3f} of the tasks; any of {k} independent episodes "
        f"of the model before training (its p{k}) does in {before['p5_success']:.3f}."
    ]


def _generations(summary: dict) -> str:
    """What one pass costs, to compare methods at equal numbers of generations."""
    spent = summary.get("generations")
    if not spent:
        return ""
    listed = ", ".join(f"{label} {count / summary['n']:.1f}" for label, count in spent.items())
    return f"Generations a test task, by pass: {listed}."


def shown(figure: Figure, sign: str = "") -> str:
    """ "0.512 ± 0.022", or "-" where there is nothing to show."""
    value, error = figure
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def heading(section: str) -> str:
    return "greedy (temperature 0)" if section == "greedy" else f"control: {section}"


def table(before: dict | None, after: dict | None, feedback: str, width: int = 120) -> Table:
    """The results for the terminal: each figure before and after with its standard error, and the change.

    What a figure means is said where the terminal is wide enough.
    """
    from rich import box
    from rich.table import Table

    known = before or after or {"n": 0}
    both = before is not None and after is not None
    caption = "\n".join(remarks(before, after, feedback))
    title = f"{known['n']} test tasks, ± standard error"
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
