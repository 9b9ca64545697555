"""Evaluations of a run: how one is begun and ended, and those in the course of training (`evaluation.every`).

In the course of training the learner is not stopped: actors that have the version which is due keep it until the exam
is over, and play groups beside its tasks. Admission is bounded by the oldest weights in play, so the learner goes
`max_staleness` steps on, and no further. Before it publishes the next version it waits until actors have this one,
for it holds the newest alone.

    announce(v)   v is due: who has it keeps it (Announced.held), the learner is told so
    look          all actors that are ready have it: the learner may publish the next; the exam begins
    look          the exam is over: a line of evaluations.jsonl, the best checkpoint, and actors take the newest weights

An exam that fails is told and counted, and training goes on: a failure is no figure.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from learner import checkpoint
from protocols import metrics
from protocols.errors import RedraftError
from protocols.evaluation import EvaluationSummary, Figure
from protocols.weights import WeightRef, step_of
from redraft import records
from redraft.config import StopSettings
from redraft.control.evaluator import Exam, Occasion, chosen
from redraft.control.exchange import Announced, Exchange
from redraft.control.status import Status, tell_accuracy
from redraft.evaluation.measures import plays
from redraft.recipe import Recipe
from redraft.run import Run
from redraft.tracking.queue import Trackers

log = logging.getLogger("redraft.controller")


@dataclass(frozen=True, slots=True)
class Sitting:
    """An exam that is played: on which occasion, and since when by `time.monotonic`."""

    exam: Exam
    occasion: Occasion
    began: float


class Examiner:
    """Begins and ends the evaluations of a run."""

    def __init__(self, run: Run, recipe: Recipe, exchange: Exchange, status: Status, trackers: Trackers):
        self.run, self.recipe, self.exchange, self.status = run, recipe, exchange, status
        self._trackers = trackers

    def begin(self, label: str, version: int, kept: bool = False) -> Sitting:
        """Of the weights of that version; where it is `kept`, actors with other weights take no part."""
        recipe, parts = self.recipe, self.exchange.parts
        passes = plays(recipe.evaluation, recipe.rollout, recipe.sampling)
        tasks = chosen(recipe.mixture, parts.tests, recipe.evaluation.n)
        exam = Exam(tasks, passes, parts.fleet, self.status, version if kept else None)
        return Sitting(exam, Occasion(label, step_of(version), version), time.monotonic())

    def end(self, sitting: Sitting) -> EvaluationSummary:
        """The figures of one that is played; writes a line of evaluations.jsonl. Raises RedraftError where there are
        none."""
        exam, occasion = sitting.exam, sitting.occasion
        summary = exam.summary()
        self.status.evaluated(exam.tally())
        exam.check()
        if self.recipe.learner.record.groups:
            exam.record(self.run.folder, occasion)
        self.run.append("evaluations.jsonl", occasion.line(sitting.began, summary).to_json())
        self._trackers.evaluation(occasion.step, summary)
        tell_accuracy(occasion.label, summary)
        return summary


class Course:
    """The evaluations of a run in the course of its training, from `step` on. `announced` is called in any thread,
    `look` in the one that looks after the fleet."""

    def __init__(self, examiner: Examiner, announced: Announced, arrived: Callable[[int], object], step: int):
        """`arrived` tells the learner that actors have a version."""
        self._examiner, self._announced, self._arrived = examiner, announced, arrived
        self._every, self._stop = examiner.recipe.evaluation.every, examiner.recipe.evaluation.stop
        self._keeps_best = examiner.recipe.learner.keep_best
        lines = [line for line in records.evaluations(examiner.run.folder).own if line.step <= step]
        self._solved = {line.step: line.summary.solved for line in lines}
        self._tried = max(self._solved, default=0)
        self._due: WeightRef | None = None
        self._sitting: Sitting | None = None
        self._mark(None)

    @property
    def going_on(self) -> bool:
        """Whether an evaluation is played, or is about to be."""
        return self._due is not None or self._sitting is not None

    @property
    def enough(self) -> str:
        """Why training is to end by what was solved so far; "" where it is to go on."""
        trained = max(self._solved, default=0) > 0
        return ends(self._stop, list(self._solved.values())) if self._stop is not None and trained else ""

    def announced(self, ref: WeightRef) -> bool:
        """Whether new weights are to be evaluated: the first at or after each multiple of `evaluation.every`, but for
        those after the last step."""
        step, every = step_of(ref.version), self._every
        if every is None or not 0 < step < self._examiner.recipe.steps or step // every <= self._tried // every:
            return False
        self._tried = step
        self._due = ref
        if self._sitting is None:
            self._announced.held = ref.version
        return True

    def look(self) -> None:
        """Begins and ends evaluations; to be called often. Raises nothing for one that fails."""
        if self._sitting is not None:
            self._go_on(self._sitting)
        else:
            self._examiner.exchange.parts.fleet.evaluated()  # of one that was given up: its actors are free again
        due = self._due
        if self._sitting is None and due is not None:
            self._announced.held = due.version
            versions = self._examiner.exchange.versions()
            newest = self._announced.newest
            passed = newest is not None and newest.version > due.version  # by a learner that is told to end
            if versions == {due.version} or (passed and due.version in versions):
                self._due = None
                self._begin(due)
            elif passed and versions:
                self._due = None
                self._fail(step_of(due.version), "no actor took these weights")

    def judge(self, step: int, summary: EvaluationSummary) -> None:
        """Takes the evaluation before training, or after it, into account."""
        self._solved[step] = summary.solved
        self._mark(None)

    def back(self, step: int) -> None:
        """The learner goes on from the checkpoint of this step: one that is played, or due, is given up, and what came
        after it is forgotten."""
        self._solved = {solved: figure for solved, figure in self._solved.items() if solved <= step}
        self._tried, self._due = max(self._solved, default=0), None
        self._examiner.status.about("")
        self._over()

    def _go_on(self, sitting: Sitting) -> None:
        try:
            if sitting.exam.advance():
                self._end(sitting)
        except (RedraftError, OSError) as error:
            self._fail(sitting.occasion.step, str(error))

    def _begin(self, due: WeightRef) -> None:
        self._mark(step_of(due.version))  # before the learner goes on, whose next checkpoint may take its place
        self._arrived(due.version)
        self._sitting = self._examiner.begin("during", due.version, kept=True)
        self._examiner.status.keeps(True)
        self._examiner.status.about(f"evaluating step {step_of(due.version)}")

    def _end(self, sitting: Sitting) -> None:
        summary = self._examiner.end(sitting)
        step = sitting.occasion.step
        self._solved[step] = summary.solved
        self._over()
        best = max(self._solved, key=lambda known: _value(self._solved[known]))
        said = f"step {step}: {_percent(summary.solved)} of the test tasks solved"
        said += "" if best == step else f", {_percent(self._solved[best])} after step {best}"
        said += f"; {summary.errors} of {summary.episodes} episodes broke off" if summary.errors else ""
        log.info("%s", said)
        self._examiner.status.about(said)

    def _fail(self, step: int, why: str) -> None:
        self._over()
        metrics.EVALUATIONS_FAILED.inc()
        self._examiner.status.about("")
        self._examiner.status.event(f"the evaluation after step {step} has failed, and training goes on: {why}")

    def _over(self) -> None:
        self._sitting = None
        self._announced.held = None
        self._examiner.status.keeps(False)
        self._mark(None)

    def _mark(self, evaluated: int | None) -> None:
        """Says which checkpoints stay, and which is the best of those that there are, or that are being written. Where
        a full disk does not take that, what was said before stays in force until there is more to say."""
        run_dir, best = self._examiner.run.folder, None
        if self._keeps_best:
            there = checkpoint.steps(run_dir)
            newest = max(there, default=0)
            known = [step for step in self._solved if step in there or step > newest]
            best = max(known, key=lambda step: _value(self._solved[step]), default=None)
        try:
            checkpoint.mark(run_dir, best, evaluated if self._keeps_best else None)
        except OSError as error:
            log.error("which checkpoints are kept is not written: %s", error)
        if best is not None:
            metrics.EVALUATION_BEST_STEP.set(best)


def ends(settings: StopSettings, solved: list[Figure]) -> str:
    """Why training is to end after evaluations that have solved so much, in their order; "" where it is to go on."""
    values = [figure.value for figure in solved if figure.value is not None]
    if not values:
        return ""
    if settings.reach is not None and values[-1] >= settings.reach:
        return f"{100 * values[-1]:.0f} % of the test tasks are solved (evaluation.stop.reach={settings.reach:g})"
    since = len(values) - 1 - values.index(max(values))
    if settings.patience is not None and since >= settings.patience:
        return f"{since} evaluations have solved no more than one before (evaluation.stop.patience={settings.patience})"
    return ""


def _value(figure: Figure) -> float:
    return -1.0 if figure.value is None else figure.value


def _percent(figure: Figure) -> str:
    error = "" if figure.error is None else f" ± {100 * figure.error:.1f}"
    return "none" if figure.value is None else f"{100 * figure.value:.1f}{error} %"
