"""Runs beside each other: what each one's folder says, runs pooled over seeds, and the table of `redraft compare`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learner.batches.responses import told
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure
from protocols.reports import StepLine
from redraft import records
from redraft.records import GOES_ON, at, duration
from redraft.report import tables

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

UNKNOWN = "unknown"
COMPARED = ("success", "success_after_error")  # of actions
BESIDE = {"pass_k": "any_turn", "majority_k": "majority_turns"}
"""Over independent tries, and the same over the turns of one episode, where that has turns."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: after so many steps, and so many generations spent on training."""

    step: int
    generations: int
    summary: EvaluationSummary


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run's folder says; `before` and `after` are None where there is no such evaluation.

    `generations` are the responses that were sampled for its steps, also for those that a resumed run lost and played
    again; `seconds` is wall time.
    """

    name: str
    recipe: Mapping[str, Any]
    state: str
    steps: int
    generations: int
    seconds: float | None
    before: EvaluationSummary | None
    after: EvaluationSummary | None
    curve: tuple[Point, ...]
    adapter: str = ""
    """What was trained in place of all weights, where it was."""

    @property
    def known(self) -> EvaluationSummary | None:
        return self.after or self.before

    @property
    def method(self) -> str:
        """rollout x credit x objective."""
        parts = (at(self.recipe, key) for key in ("rollout.name", "learner.credit.name", "learner.objective.name"))
        return " × ".join(str(part) for part in parts if part is not None) or UNKNOWN

    @property
    def environment(self) -> str:
        """What is played, whatever the feedback: its name, options and data."""
        return " and ".join(_told(one) for one in records.played(self.recipe)) or UNKNOWN

    def rows(self) -> list[tables.ResultRow]:
        """The figures by which runs are compared, see `rows`."""
        return rows(self.before, self.after)


def _told(environment: Mapping[str, Any]) -> str:
    """Its name, weight among several, options and data."""
    name, data = environment.get("name") or UNKNOWN, at(environment, "data.path")
    name = f"{environment['weight']} x {name}" if "weight" in environment else name
    options = sorted((environment.get("options") or {}).items())
    return ", ".join(map(str, [name, *(f"{key}={value}" for key, value in options), *([data] if data else [])]))


def read(run_dir: Path) -> RunResult:
    """What the run in this folder did so far. Files that are missing leave their part out."""
    run_dir = Path(run_dir).resolve()
    written = records.step_lines(run_dir)
    steps, ended, recipe = records.steps(written), records.ended(run_dir), records.recipe(run_dir)
    evaluations = records.evaluations(run_dir)
    first, last = evaluations.first, evaluations.last
    by_step = {line.step: line.summary for line in (*evaluations.alike, first, last) if line}
    return RunResult(
        name=run_dir.name,
        recipe=recipe,
        state=ended.state if ended else GOES_ON,
        steps=steps[-1].report.step if steps else 0,
        generations=_spent(written),
        seconds=(ended and ended.seconds) or (steps[-1].time_s if steps else None),
        before=first and first.summary,
        after=last and last.summary,
        curve=tuple(Point(n, _spent(written, until=n), by_step[n]) for n in sorted(by_step)),
        adapter=records.adapter(recipe, ended and ended.trained_parameters),
    )


def _spent(written: Sequence[StepLine], until: int | None = None) -> int:
    """Of all lines of metrics.jsonl in the order in which they were written, up to the last one of that step."""
    counted = len(written)
    while until is not None and counted and written[counted - 1].report.step > until:
        counted -= 1
    return sum(line.generations for line in written[:counted])


def rows(before: EvaluationSummary | None, after: EvaluationSummary | None) -> list[tables.ResultRow]:
    """The first and the last turn, or success; the same greedy and for controls; and figures over k independent answers
    of the start model beside those over the turns of one episode after training."""
    known = after or before
    if known is None:
        return []
    main = tables.main(known)
    names = {name.key: name for name in tables.names(known)}
    first = tables.Name("accuracy_by_turn", "turn 1", "", 0)
    answers = [first, main][: known.turns]
    chosen = answers if known.kind == "answers" else [names[key] for key in COMPARED if key in names]
    pairs = [(name.label, name, name) for name in chosen]
    for key, over_turns in BESIDE.items():
        old, new = names.get(key), names.get(over_turns)
        if old is not None:
            pairs.append((f"{old.label} → {new.label}" if new else old.label, old, new or old))
    found = []
    for section, old, new in tables.passes(before, after):
        if section == "sampled":
            found += [
                tables.ResultRow(label, name.meaning, given.of(old), name.of(new)) for label, given, name in pairs
            ]
        else:
            found.append(tables.ResultRow(f"{main.label}, {section}", main.meaning, main.of(old), main.of(new)))
    return [row for row in found if row.before.value is not None or row.after.value is not None]


# Pooling -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pooled:
    """A figure's mean over runs; `error` is the standard error within one run (root mean square), since all runs play
    the same test tasks; `over_seeds` that of the mean over runs, None for fewer than two."""

    value: float | None
    error: float | None = None
    over_seeds: float | None = None

    @property
    def widest(self) -> float:
        """For error bars."""
        return max(self.error or 0.0, self.over_seeds or 0.0)


@dataclass(frozen=True, slots=True)
class PooledRow:
    label: str
    before: Pooled
    after: Pooled
    change: Pooled


@dataclass(frozen=True, slots=True)
class PooledRuns:
    """Runs that differ in their seeds only."""

    label: str
    results: tuple[RunResult, ...]

    def rows(self) -> list[PooledRow]:
        """The rows of the runs, those of one label pooled."""
        by_label: dict[str, list[tables.ResultRow]] = {}
        for result in self.results:
            for row in result.rows():
                by_label.setdefault(row.label, []).append(row)
        parts: list[Callable[[tables.ResultRow], Figure]] = [lambda r: r.before, lambda r: r.after, lambda r: r.change]
        return [
            PooledRow(label, *(mean([part(row) for row in found]) for part in parts))
            for label, found in by_label.items()
        ]

    def by_turn(self, when: str) -> list[Pooled]:
        """Accuracy at each turn "before" or "after"; [] where there is none."""
        summaries = [result.before if when == "before" else result.after for result in self.results]
        by_turn = [one.sampled.accuracy_by_turn for one in summaries if one and isinstance(one.sampled, AnswerFigures)]
        return [mean(turn) for turn in zip(*by_turn, strict=False)]

    def main(self) -> PooledRow | None:
        """The figure that says how good the model is, see tables.main."""
        known = next((result.known for result in self.results if result.known), None)
        label = tables.main(known).label if known else None
        return next((row for row in self.rows() if row.label == label), None)

    def facts(self) -> list[str]:
        """What a reader has to know of these runs, a few words each."""
        found, one = self.results, self.results[0]
        seeds = ", ".join(str(at(result.recipe, "seed")) for result in found)
        states = dict.fromkeys(result.state for result in found)
        steps = sorted({result.steps for result in found})
        facts = [one.method, *([one.adapter] if one.adapter else [])]
        facts.append(f"feedback {records.feedback(one.recipe) or UNKNOWN}")
        facts.append(f"seed{'s' * (len(found) > 1)} {seeds}")
        facts.append(f"{' to '.join(str(n) for n in (steps[0], steps[-1])[: len(steps)])} steps, {' / '.join(states)}")
        mean_of = " on average" * (len(found) > 1)
        facts.append(f"{round(np.mean([result.generations for result in found])):,} generations{mean_of}")
        times = [result.seconds for result in found if result.seconds]
        facts += [f"{duration(float(np.mean(times)))}{mean_of}"] if times else []
        sizes = sorted({result.known.n for result in found if result.known})
        facts += [f"{' / '.join(map(str, sizes))} test tasks"] if sizes else ["no evaluation yet"]
        if spent := [per_task for result in found if (per_task := _per_task(result.known))]:
            facts.append(f"{np.mean(spent):.1f} generations an episode")
        facts += dict.fromkeys(
            answers for result in found if result.known and (answers := told(result.known.sampled.responses))
        )
        return facts


def _per_task(summary: EvaluationSummary | None) -> float | None:
    """Generations of one sampled episode."""
    counted = summary and summary.generations.get("sampled")
    return counted / summary.n if summary and counted else None


def mean(figures: Sequence[Figure]) -> Pooled:
    """Over runs; those without the figure do not count."""
    found = [figure for figure in figures if figure.value is not None]
    if not found:
        return Pooled(None)
    values, errors = (np.array([figure[part] for figure in found], float) for part in (0, 1))
    within = None if np.isnan(errors).any() else float(np.sqrt((errors**2).mean()))
    over = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Pooled(float(values.mean()), within, over)


def pool(results: Sequence[RunResult]) -> list[PooledRuns]:
    """One entry for the runs of each recipe, whatever their seeds (`seed`, `model.make.seed`) and names."""
    groups: dict[str, list[RunResult]] = {}
    for number, result in enumerate(results):
        key = json.dumps(_without_seed(result.recipe), sort_keys=True) if result.recipe else f"no recipe {number}"
        groups.setdefault(key, []).append(result)
    labels: list[str] = []
    for found in groups.values():
        label = _common([result.name for result in found])
        same = sum(known == label or known.startswith(f"{label} (") for known in labels)
        labels.append(f"{label} ({same + 1})" if same else label)
    return [PooledRuns(label, tuple(found)) for label, found in zip(labels, groups.values(), strict=True)]


def _without_seed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if key not in ("name", "seed")}
    if make := at(recipe, "model.make"):
        kept["model"] = recipe["model"] | {"make": {key: value for key, value in make.items() if key != "seed"}}
    return kept


def _common(names: Sequence[str]) -> str:
    """What the names begin with alike, or the first of them."""
    stem = os.path.commonprefix(list(names)).rstrip("-_.")
    stem = stem.removesuffix("seed").rstrip("-_.") if len(names) > 1 else stem
    return stem or names[0]


def sections(entries: Sequence[PooledRuns]) -> dict[str, list[PooledRuns]]:
    """Entries by environment: figures of different ones cannot be compared."""
    found: dict[str, list[PooledRuns]] = {}
    for entry in entries:
        found.setdefault(entry.results[0].environment, []).append(entry)
    return found


# For people ----------------------------------------------------------------------------------------------------------

ERRORS = "± standard error over test tasks (of one run), in brackets the standard error over seeds."
ANSWERS = (
    "pass@k → any of T turns: any of k independent answers of the model before training is right, beside any of the T "
    "turns of one episode after it (RISE writes pk@t1 and p1@tT); majority@k → majority of T turns: the same for the "
    "most common answer (mk@t1 and m1@tT). They cost equally many answers where k = T."
)
ACTIONS = "pass@k: any of k independent episodes succeeds."


def note(entries: Sequence[PooledRuns]) -> str:
    """What the figures of these entries are."""
    known = [result.known for entry in entries for result in entry.results if result.known]
    told = dict.fromkeys(ACTIONS if summary.kind == "actions" else ANSWERS for summary in known)
    return " ".join([ERRORS, *told])


def shown(figure: Pooled, sign: str = "") -> str:
    """ "0.512 ± 0.022 (0.031)", or "-" where there is nothing to show."""
    text = tables.shown(Figure(figure.value, figure.error), sign)
    return text if figure.over_seeds is None else f"{text} ({figure.over_seeds:.3f})"


def terminal(entries: Sequence[PooledRuns], width: int) -> RenderableType:
    """The table for the terminal. Where that is narrow, changes and what a run was are left to the page."""
    from rich.console import Group
    from rich.text import Text

    drawn = [_table(environment, found, width >= tables.WIDE) for environment, found in sections(entries).items()]
    return Group(*drawn, Text(note(entries), style="dim"))


def _table(environment: str, entries: Sequence[PooledRuns], wide: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(environment), title_justify="left", box=box.SIMPLE_HEAD)
    if wide:
        table.add_column("run")
    table.add_column("" if wide else "run", no_wrap=True)
    for header in ("before", "after", "change")[: 3 if wide else 2]:
        table.add_column(header, justify="right", no_wrap=True)
    for entry in entries:
        columns = [Text("\n".join(column)) for column in zip(*_cells(entry), strict=True)]
        name = Text(entry.label, style="bold")
        if wide:
            facts = Text("\n".join(["", *entry.facts()]), style="dim")
            table.add_row(Text.assemble(name, facts), *columns)
        else:
            table.add_row(name)
            table.add_row(*columns[:3])
        table.add_section()
    return table


def _cells(entry: PooledRuns) -> list[tuple[str, str, str, str]]:
    found = [(row.label, shown(row.before), shown(row.after), shown(row.change, "+")) for row in entry.rows()]
    return found or [("-", "-", "-", "-")]
