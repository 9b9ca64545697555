"""The tables and the picture of docs/results.md, from the rows that benchmarks.methods keeps.

Methods that have no row yet stand there with the figures that earlier commits printed, which tell no single
seeds (benchmarks/results/printed.jsonl). A method's line of that file goes once the method has a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.method_rows import Row
from benchmarks.methods import COSTS, Result
from protocols.evaluation import EvaluationSummary, Kind

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PICTURE = "results.png"
PRINTED = Path("benchmarks/results/printed.jsonl")  # beneath the root
OLDER = "†"
NOTE = f"{OLDER} made by an earlier version of the system or of the recipe; tokens were not counted then."

Of = Callable[[EvaluationSummary], "float | None"]
ANSWERS: tuple[tuple[str, Of], ...] = (
    ("turn 1", lambda summary: summary.sampled.accuracy_by_turn[0].value),
    ("last turn", lambda summary: summary.sampled.accuracy_by_turn[-1].value),
    ("fix rate", lambda summary: summary.sampled.fix_rate.value),
    ("keep rate", lambda summary: summary.sampled.keep_rate.value),
    ("majority of T turns", lambda summary: summary.sampled.majority_turns.value),
    ("any of T turns", lambda summary: summary.sampled.any_turn.value),
    ("pass@k", lambda summary: summary.sampled.pass_k.value),
)
ACTIONS: tuple[tuple[str, Of], ...] = (
    ("success", lambda summary: summary.sampled.success.value),
    ("success after an error", lambda summary: summary.sampled.success_after_error.value),
    ("share with an error", lambda summary: summary.sampled.error_share.value),
    ("actions", lambda summary: summary.sampled.actions.value),
    ("greedy success", lambda summary: summary.greedy and summary.greedy.success.value),
)
FIGURES: dict[Kind, tuple[tuple[str, Of], ...]] = {"answers": ANSWERS, "actions": ACTIONS}
HEADS = {
    "attempts": "attempts",
    "sampled_tokens": "sampled tokens",
    "learner_tokens": "learner tokens",
    "cpu_s": "CPU-s",
}


class Spread(NamedTuple):
    """Mean over seeds with its standard error, where there is more than one; None over nothing."""

    mean: float | None = None
    error: float | None = None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        text = f"{self.mean:.2f}".removeprefix("0") if self.mean <= 1 else f"{self.mean:.1f}"
        return text if self.error is None else f"{text} ±{self.error:.3f}".replace("±0.", "±.")


Change = tuple[Spread, Spread]
"""Before and after training; the same twice where nothing was sampled for it."""


@dataclass(frozen=True, slots=True)
class Line:
    """What tables say of one method."""

    method: str
    kind: Kind
    turns: int
    seeds: int
    older: bool
    figures: dict[str, Change]
    controls: dict[str, Change]
    """By what stood between two tries, the success of the second given a failed first one."""
    costs: dict[str, float]

    @property
    def name(self) -> str:
        return f"`{self.method}`" + f" {OLDER}" * self.older + f" (T = {self.turns})" * (self.kind == "answers")


def lines(found: Sequence[Result], printed: Sequence[Line] = (), order: Sequence[str] = ()) -> list[Line]:
    """Of the rows, and of methods that are only printed, in their order."""
    known = {line.method: line for line in (*printed, *map(_measured, found))}
    return [known[name] for name in order or known if name in known]


def _measured(result: Result) -> Line:
    rows, last = result.rows, result.rows[0].last
    figures = {label: _change(rows, figure) for label, figure in FIGURES[last.kind]}
    controls = {label: _change(rows, _control(label)) for label in last.controls}
    costs = {key: sum(getattr(row, key) for row in rows) / len(rows) for key in COSTS}
    return Line(result.method.name, last.kind, last.turns, len(rows), result.older, figures, controls, costs)


def _control(label: str) -> Of:
    return lambda summary: summary.controls[label].fix_rate.value


def _change(rows: Sequence[Row], figure: Of) -> Change:
    return spread(figure(row.before) for row in rows), spread(figure(row.last) for row in rows)


def spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    if not known:
        return Spread()
    average = sum(known) / len(known)
    if len(known) < 2:
        return Spread(average)
    variance = sum((value - average) ** 2 for value in known) / (len(known) - 1)
    return Spread(average, math.sqrt(variance / len(known)))


def printed(root: Path) -> list[Line]:
    """Each line of the file is a Line; a change is [[mean, error], [mean, error]]."""
    file = root / PRINTED
    if not file.exists():
        return []
    found = []
    for text in file.read_text().splitlines():
        line = json.loads(text)
        for part in ("figures", "controls"):
            changes = {label: (Spread(*before), Spread(*after)) for label, (before, after) in line[part].items()}
            line[part] = changes
        found.append(Line(**line, older=True))
    return found


def tables(found: Sequence[Line]) -> str:
    """Markdown: answers tried again, environments of many actions, and controls."""
    parts = []
    for title, kind in (("signs", "answers"), ("minicraft", "actions")):
        if chosen := [line for line in found if line.kind == kind]:
            parts += [f"### `{title}`\n", _table(chosen, kind)]
    if controlled := [line for line in found if line.controls]:
        parts += ["### Second tries beside their controls\n", _controls(controlled)]
    if any(line.older for line in found):
        parts.append(NOTE + "\n")
    return "\n".join(parts)


def _table(found: Sequence[Line], kind: Kind) -> str:
    heads = ["method", "seeds", *(name for name, _ in FIGURES[kind]), *HEADS.values()]
    told = [row(heads), row(["---"] * len(heads))]
    for line in found:
        cells = [_told(line, name) for name, _ in FIGURES[kind]]
        costs = [f"{line.costs[key]:,.0f}" if key in line.costs else "-" for key in HEADS]
        told.append(row([line.name, str(line.seeds), *cells, *costs]))
    return "\n".join(told) + "\n"


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _told(line: Line, figure: str) -> str:
    before, after = line.figures[figure]
    return f"{before} → {after}" if line.costs["attempts"] else str(after)


def _controls(found: Sequence[Line]) -> str:
    """Success of the second try given a failed first one (the fix rate of two turns), by what stood between."""
    told = [row(["method", "second try after", "before", "after"]), row(["---"] * 4)]
    for line in found:
        changes = {"the model's reflection": line.figures["fix rate"], **line.controls}
        name = f"`{line.method}`" + f" {OLDER}" * line.older
        told += [row([name, label, str(before), str(after)]) for label, (before, after) in changes.items()]
    return "\n".join(told) + "\n"


def write(found: Sequence[Line], docs: Path) -> None:
    """Puts the tables between the marks of docs/results.md, and the picture beside it."""
    page = docs / "results.md"
    text = page.read_text() if page.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    draw(found, docs / "images" / PICTURE)
    shown = f"{BEGIN}\n![Before and after, by method](images/{PICTURE})\n\n{tables(found)}{END}"
    page.write_text(head + shown + tail)


def draw(found: Sequence[Line], path: Path) -> None:
    """Bars before and after with standard errors over seeds: the last turn of answers, the success of actions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from redraft.report.plots import AFTER, BEFORE, STYLE

    kinds = [("answers", "signs: right at the last turn", "last turn"), ("actions", "minicraft: success", "success")]
    panels = [(title, label, chosen) for kind, title, label in kinds if (chosen := _of_kind(found, kind))]
    with plt.rc_context(STYLE):
        heights = [len(chosen) for _, _, chosen in panels]
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(7.5, 0.42 * sum(heights) + 1.2), height_ratios=heights, layout="constrained"
        )
        for axis, (title, label, chosen) in zip(axes if len(panels) > 1 else [axes], panels, strict=True):
            for part, (shift, color, when) in enumerate(((-0.2, BEFORE, "before"), (0.2, AFTER, "after"))):
                bars = [line.figures[label][part] for line in chosen]
                places = [place + shift for place in range(len(bars))]
                errors = [bar.error or 0.0 for bar in bars]
                axis.barh(places, [bar.mean or 0.0 for bar in bars], 0.36, xerr=errors, color=color, label=when)
            axis.set_yticks(range(len(chosen)), [line.method + f" {OLDER}" * line.older for line in chosen])
            axis.invert_yaxis()
            axis.set(title=title, xlim=(0, 1))
            axis.legend(loc="lower right")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _of_kind(found: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in found if line.kind == kind]
