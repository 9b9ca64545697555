"""A benchmark of methods whose commands succeed at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.methods import Bench, Method
from protocols.evaluation import AnswerFigures, EvaluationLine, EvaluationSummary, Figure
from protocols.reports import BatchReport, RunEnded, StepLine, StepReport


def found(solved: float, last: float | None = None) -> EvaluationSummary:
    """Right at the first answer, and at the last of two."""
    figures = AnswerFigures(
        accuracy_by_turn=(Figure(solved, 0.1), Figure(solved if last is None else last, 0.1)),
        any_turn=Figure(0.75),
        pass_k=Figure(0.625),
        fix_rate=Figure(0.5),
    )
    return EvaluationSummary(
        n=4, turns=2, k=5, sampled=figures, controls={"no reflection": AnswerFigures(fix_rate=Figure(0.125))}
    )


class Trained(Bench):
    """Each training costs one second more than the one before; `calls` holds commands with their arguments."""

    def __init__(self, folder: Path, quick: bool = False, methods: Sequence[Method] | None = None):
        super().__init__(folder, quick, methods)
        self.names: list[str] = []
        self.calls: list[tuple[str, list[str]]] = []

    def _redraft(self, command, method, arguments, log):
        self.calls.append((command, list(arguments)))
        if command == "train":
            self.names.append(method.name)
            run = self.folder / "runs" / arguments[arguments.index("--run") + 1]
            run.mkdir(parents=True, exist_ok=True)
            write_run(run)
        return float(len(self.names))


def write_run(run: Path, state: str = "done") -> None:
    """The folder of a run of two steps, the second of which was played again after a crash."""
    before, after = found(0.25), found(0.5, 1.0)
    batch = BatchReport(tokens=50)
    steps = [StepLine(StepReport(step=step, batch=batch), generated_tokens=10 * step) for step in (1, 2, 2)]
    evaluations = [EvaluationLine("before", 0, 0, 1.0, before), EvaluationLine("after", 2, 2, 1.0, after)]
    ended = RunEnded(run.name, state, before=before, after=after, attempts=7, steps=2)
    (run / "summary.json").write_text(json.dumps(ended.to_json()))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in steps))
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in evaluations))
