"""An exam: the fleet plays tasks outside of training, in one pass or all those of an evaluation."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from actors import mixture as mixtures
from actors.mixture import Mixture
from actors.tally import Tally
from learner.credits import grown_too_long
from learner.transcripts.store import write_evaluation
from protocols.errors import RedraftError
from protocols.evaluation import EvaluationLine, EvaluationSummary
from protocols.reports import Finding
from protocols.turns import MIXED_FROM, Role, Turn, sampled_tokens
from redraft.control.fleet import Fleet
from redraft.control.status import Status
from redraft.diagnosis.causes import Diagnosis
from redraft.evaluation import measures as evaluation
from redraft.evaluation.measures import Pass
from redraft.recipe import Recipe

SHARE = 250  # tasks that one actor plays at a time
TRIES = 3  # losses of one share before the evaluation gives up
EXAM_SEED = 0  # which test tasks are played does not depend on the run


@dataclass(frozen=True, slots=True)
class Occasion:
    """When an evaluation is played: `label` is before, during, after or eval; of the weights `version`, after `step`
    steps; with which `overrides` of the run's recipe."""

    label: str
    step: int
    version: int
    overrides: tuple[str, ...] = ()

    def line(self, began: float, summary: EvaluationSummary) -> EvaluationLine:
        """The line of an evaluation that began at that time of `time.monotonic` and ends now."""
        seconds = round(time.monotonic() - began, 1)
        return EvaluationLine(self.label, self.step, self.version, seconds, summary, self.overrides)


def chosen(mixture: Mixture, tests: Sequence[dict], n: int) -> list[dict]:
    """The `n` test tasks that every evaluation plays, of several environments by their weights, none of them twice;
    fewer where there are no more."""
    order = mixtures.order(mixture, tests, EXAM_SEED)
    plays = (order.task(position) for position in itertools.count())
    return list(itertools.islice((task for epoch, task in plays if not epoch), min(n, len(tests))))


def findings_of(tally: Tally, recipe: Recipe) -> list[Finding]:
    """Why figures of play with this tally may say little: what a run says of it in training."""
    diagnosis = Diagnosis(recipe)
    diagnosis.evaluated(tally)
    return diagnosis.look(0.0)[0]


class Exam:
    """Hands shares of tasks to actors that are free; a share that is lost with its actor is played again.

    `passes` are what evaluation.plays returns. With a `version` only actors that have it take part.
    """

    def __init__(
        self,
        tasks: Sequence[dict],
        passes: Sequence[Pass],
        fleet: Fleet,
        status: Status,
        version: int | None = None,
    ):
        self._version = version
        self._fleet, self._status, self._tasks, self._passes = fleet, status, tasks, passes
        starts = range(0, len(self._tasks), SHARE)
        self._shares = deque((number, start, 0) for number in range(len(self._passes)) for start in starts)
        self._total = len(self._passes) * len(self._tasks)
        self._under_way: dict[int, tuple[int, int, int]] = {}
        self._shares_given = 0
        self._share_of: dict[int, int] = {}  # by actor, the number of the share that it plays
        self._began: float | None = None  # when the first was
        self._tokens = 0  # of the shares that are played
        self._played: dict[tuple[int, int], list[list[Turn]]] = {}

    def advance(self) -> bool:
        """Collects what was played, hands out more; True when all is played. Raises RedraftError after many losses."""
        for actor, turns in self._fleet.evaluated():
            if actor not in self._under_way:  # of an exam that was given up
                continue
            number, start, losses = self._under_way.pop(actor)
            if turns is not None:
                self._played[number, start] = turns
                self._tokens += sum(sampled_tokens(turn) for task in turns for turn in task)
            elif actor not in self._fleet.members or self._fleet.members[actor].draining is not None:  # taken from it
                self._shares.append((number, start, losses))
            elif losses + 1 < TRIES:
                self._shares.append((number, start, losses + 1))
            else:
                tasks = f"tasks {start} to {min(start + SHARE, len(self._tasks)) - 1}"
                raise RedraftError(
                    f"{tasks} were lost with their actor {TRIES} times; the last: {self._status.last_event}"
                )
        takers = self._takers()
        if self._version is not None and self._shares and not takers:
            raise RedraftError(f"no actor has version {self._version} any more; the last: {self._status.last_event}")
        for actor in takers:
            if self._shares and not self._fleet.members[actor].evaluating:
                number, start, _ = self._under_way[actor] = self._shares.popleft()
                self._share_of[actor] = self._shares_given
                self._shares_given += 1
                self._began = self._began or time.monotonic()
                tasks = self._tasks[start : start + SHARE]
                self._fleet.evaluate(actor, tasks, self._passes[number], self._share_of[actor])
        self._tell()
        return not self._shares and not self._under_way

    def _takers(self) -> list[int]:
        """Actors that may play. Without a version that is asked for there may be none for a while."""
        ready = self._fleet.ready()
        if self._version is None:
            return ready
        return [actor for actor in ready if self._fleet.members[actor].report.version == self._version]

    def _tell(self) -> None:
        """How many tasks have ended, of all passes, and how fast: also those of shares that are still played."""
        reports = [self._fleet.members[actor].report for actor in self._under_way]
        heard = [
            report
            for actor, report in zip(self._under_way, reports, strict=True)
            if report.share == self._share_of[actor]
        ]
        done = sum(map(len, self._played.values())) + sum(report.tested for report in heard)
        tokens = self._tokens + sum(report.tested_tokens for report in heard)
        seconds = time.monotonic() - self._began if self._began is not None else 0.0
        self._status.progress(done, self._total, tokens / seconds if seconds and self._version is None else None)

    def played(self) -> dict[str, list[list[Turn]]]:
        """The turns of each task, by the label of the pass."""
        return {
            label: [turns for start in range(0, len(self._tasks), SHARE) for turns in self._played[number, start]]
            for number, (label, *_) in enumerate(self._passes)
        }

    def summary(self) -> EvaluationSummary:
        whole = self._passes[0].rollout
        labels = [task.get(MIXED_FROM, "") for task in self._tasks]
        return evaluation.summarise(self.played(), whole.turns, whole.kind, labels)

    def tally(self) -> Tally:
        """How many episodes broke, and of what."""
        found = Tally(episodes=len(self._tasks) * sum(one.rollout.episodes for one in self._passes))
        for turn in self._errors():
            found.turn(turn)
        return found

    def check(self) -> None:
        """Raises RedraftError where every episode broke off: there are no figures."""
        broken = [turn for turn in self._errors() if not grown_too_long(turn)]
        if broken and len(broken) == self.tally().episodes:
            problem = f"all {len(broken)} episodes of the evaluation broke off"
            raise RedraftError(f"{problem}. The last error: {broken[-1].extra.get('error', '')}")

    def _errors(self) -> Iterator[Turn]:
        for tasks in self.played().values():
            yield from (turn for turns in tasks for turn in turns if turn.role is Role.ERROR)

    def record(self, folder: Path, occasion: Occasion) -> None:
        """Keeps some of the first pass in a run's folder."""
        write_evaluation(folder, asdict(occasion), self._tasks, self.played()[self._passes[0].label])
