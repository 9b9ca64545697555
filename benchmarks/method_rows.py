"""What one run of a method came to, as a row of a file that is committed: figures outlive the machine that made them.

    python -m benchmarks.methods ----> benchmarks/results/methods.jsonl ----> tables and picture of docs/results.md

A row is one line of strict JSON. Runs of other seeds may come from other days and machines; of two rows of one method,
seed and digest the newest counts. The digest is that of all settings: a row whose digest is no longer that of its
method is `older`, which tables mark, and stands until a newer one is made.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from protocols.evaluation import EvaluationSummary
from protocols.reports import StepLine
from redraft import records

RESULTS = "benchmarks/results"
ROW = "row.json"  # in the folder of a run that is done
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation on the way: after so many sampled tokens, the share that is right at the first answer (None where
    an episode is many actions), and at the last one, or of episodes that succeed."""

    step: int
    sampled_tokens: int
    first: float | None
    solved: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One run. `attempts` are responses sampled for training, reflections apart; `sampled_tokens` those of all
    responses sampled for it; `learner_tokens` those that the learner forwarded, padding included. Evaluations count in
    none of these, but in CPU-seconds. `commit` ends with + where the tree held changes that were not committed. `fit`
    are means over steps: the effective share of samples, the share of tokens that a correction masked, staleness, and
    the share of the learner's time that its bound kept it waiting; with the bound that was in force at the end."""

    method: str
    seed: int
    digest: str
    recipe: str
    commit: str
    ended: str
    """UTC, as ISO 8601 writes it."""
    before: EvaluationSummary
    after: EvaluationSummary | None
    attempts: int
    sampled_tokens: int
    learner_tokens: int
    cpu_s: float
    wall_s: float
    steps: int
    curve: tuple[Point, ...] = field(default=())
    fit: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, figures with four digits."""
        found = {name: getattr(self, name) for name in self.__slots__}
        found["before"] = self.before.to_json()
        found["after"] = self.after and self.after.to_json()
        found["curve"] = [asdict(point) for point in self.curve]
        return json.dumps(_rounded(found), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Raises TypeError for a row of another form."""
        after = found["after"]
        return cls(
            **{
                **found,
                "before": EvaluationSummary.from_json(found["before"]),
                "after": None if after is None else EvaluationSummary.from_json(after),
                "curve": tuple(Point(**point) for point in found["curve"]),
            }
        )

    @property
    def last(self) -> EvaluationSummary:
        """After training; what was not trained is as it was."""
        return self.after or self.before


def of_run(run: Path, **known: Any) -> Row:
    """The row of a run that is done, with what its folder does not know. Raises ValueError where it
    ended otherwise, or was not evaluated."""
    ended, written = records.ended(run), records.step_lines(run)
    if ended is None or ended.state != "done" or ended.before is None:
        raise ValueError(f"{run} holds no run that is done and was evaluated")
    return Row(
        **known,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        before=ended.before,
        after=ended.after,
        attempts=ended.attempts,
        sampled_tokens=_sampled(written),
        learner_tokens=sum(line.report.batch.tokens for line in written),
        steps=ended.steps,
        curve=tuple(
            Point(line.step, _sampled(written, line.step), _first(line.summary), line.summary.solved.value)
            for line in records.evaluations(run).own
        ),
        fit=_fit(records.steps(written)),
    )


def _fit(lines: Sequence[StepLine]) -> dict[str, float]:
    """Of the steps of the history that was kept; a figure that no step has is left out."""
    figures = {
        "effective_samples": [line.report.fit.effective_samples for line in lines],
        "masked_share": [line.report.fit.masked_share for line in lines],
        "staleness": [line.report.batch.staleness_mean for line in lines],
        "held_share": [line.report.held_share for line in lines],
        "bound": [line.report.max_staleness for line in lines[-1:]],
    }
    known = {name: [value for value in values if value is not None] for name, values in figures.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _sampled(written: Sequence[StepLine], until: int | None = None) -> int:
    """Tokens that were sampled up to a step, in the order in which lines were written: what a resumed run had lost was
    sampled, too."""
    counted = len(written)
    while until is not None and counted and written[counted - 1].report.step > until:
        counted -= 1
    return sum(line.generated_tokens for line in written[:counted])


def _first(summary: EvaluationSummary) -> float | None:
    by_turn = getattr(summary.sampled, "accuracy_by_turn", ())
    return by_turn[0].value if by_turn else None


def kept(run: Path) -> Row | None:
    """The row of the run in this folder; None where none is done."""
    found = records.json_object(run / ROW)
    return Row.from_json(found) if found else None


def keep(row: Row, run: Path, file: Path | None) -> None:
    """Writes the row into its run's folder and, at one stroke, at the end of the file."""
    line = row.to_json() + "\n"
    (run / ROW).write_text(line)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as rows:
            rows.write(line)


def read(file: Path | None, runs: Path) -> list[Row]:
    """Those of the file and of the folder of runs, the newest last."""
    found = [] if file is None else [Row.from_json(line) for line in records.lines(file)]
    found += [row for run in sorted(runs.glob("*")) if (row := kept(run)) is not None]
    return sorted(found, key=lambda row: row.ended)


def chosen(rows: Iterable[Row], method: str, digest: str) -> list[Row]:
    """What a method's figures are taken over: its newest row of each seed, of today's settings; where there is none,
    of those of its newest row."""
    own = sorted((row for row in rows if row.method == method), key=lambda row: row.ended)
    current = digest if any(row.digest == digest for row in own) else own[-1].digest if own else None
    newest = {row.seed: row for row in own if row.digest == current}
    return [newest[seed] for seed in sorted(newest)]


def commit(root: Path) -> str:
    """The commit of this tree, with + where it has changes, rows and pages of earlier runs apart; "" where it is no
    clone."""
    status = ("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}", ":!docs")
    told = [_git(root, "rev-parse", "--short=12", "HEAD"), _git(root, *status)]
    return told[0] + "+" * bool(told[0] and told[1])


def _git(root: Path, *arguments: str) -> str:
    try:
        told = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60)
    except OSError:
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


def _rounded(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_rounded(value) for value in found]
    return round(found, DIGITS) if isinstance(found, float) else found
