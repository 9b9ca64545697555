"""Playing tasks with a model as it is: evaluations beside a run or without one, and collecting failures."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from actors import experience
from protocols import own_code
from protocols.errors import SettingError
from redraft import logs
from redraft import recipe as recipes
from redraft import run as runs
from redraft.control.cluster import ray_for
from redraft.evaluation import failures
from redraft.launch import fits, preflight, room
from redraft.models import make as models
from redraft.owner import Owner
from redraft.recipe import Recipe
from redraft.run import Run
from redraft.watch.live import LiveView, show_findings

if TYPE_CHECKING:
    from protocols.evaluation import EvaluationSummary
    from protocols.reports import Finding
    from protocols.turns import Turn
    from redraft.control.evaluator import Exam, Occasion
    from redraft.control.fleet import Fleet
    from redraft.control.status import Status
    from redraft.evaluation.measures import Pass

MATTERS = (
    "actors",
    "data",
    "environment",
    "evaluation",
    "learner.record.groups",
    "metrics.host",
    "metrics.token",
    "model.dtype",
    "model.on_rewrite",
    "rollout",
    "sampling",
    "seed",
    "start_s",
)
"""What `redraft eval` looks at in a run's recipe; the model is the checkpoint's."""
LOOK_S = 0.1  # between two looks at the fleet


def evaluate(name: str, overrides: Sequence[str], step: int | None, best: bool, cache: Path, console: Console) -> None:
    """Plays the test tasks with a checkpoint's weights; prints the table, and why it may say little, and adds a line to
    evaluations.jsonl. Raises RedraftError where no episode came to an end."""
    with runs.reading(name) as run:
        logs.to_terminal(run.name)
        _evaluate(run, overrides, step, best, cache, console)


def _evaluate(run: Run, overrides: Sequence[str], step: int | None, best: bool, cache: Path, console: Console) -> None:
    from actors import mixture
    from learner import checkpoint
    from protocols.weights import version_of
    from redraft.control.evaluator import Occasion
    from redraft.report.page import relative, write_report
    from redraft.report.tables import table

    recipe = preflight.with_facts(recipes.reload(run.folder, overrides, "eval", MATTERS))
    folder = runs.checkpoint_at(run, step, best)
    preflight.check_environment(recipe, only_tests=True)
    state = checkpoint.read(folder, run.id)
    occasion = Occasion("eval", state.step, version_of(state.incarnation, state.step), tuple(overrides))
    tests = mixture.tasks(recipe.mixture, "test")
    model = models.of_checkpoint(folder, run, cache)
    fits.check(model, recipe)
    began = time.monotonic()
    with ray_for(recipe):
        summary, findings = exam(recipe, run, model, occasion, tests, LiveView(console, run.name))
    run.append("evaluations.jsonl", occasion.line(began, summary).to_json())
    console.print(table(None, summary, recipe.feedback, console.width))
    show_findings(findings, console)
    console.print(f"report: {relative(write_report(run.folder))}", soft_wrap=True)


def exam(
    recipe: Recipe, run: Run, model: Path, occasion: Occasion, tests: Sequence[dict], view: LiveView
) -> tuple[EvaluationSummary, list[Finding]]:
    """The figures of the model in a folder, and what is wrong with them. Raises RedraftError where all episodes broke
    off."""
    from redraft.control.evaluator import Exam, chosen, findings_of
    from redraft.evaluation.measures import plays

    passes = plays(recipe.evaluation, recipe.rollout, recipe.sampling)
    with _fleet(recipe, run, model, occasion.version, view) as (fleet, status, serve):
        exam = Exam(chosen(recipe.mixture, tests, recipe.evaluation.n), passes, fleet, status)
        serve(exam)
        exam.check()
        if recipe.learner.record.groups:
            exam.record(run.folder, occasion)
        return exam.summary(), findings_of(exam.tally(), recipe)


def collect_failures(recipe: Recipe, file: Path, attempts: int, cache: Path, console: Console) -> int:
    """Writes a dataset of failures of the recipe's model; returns how many there are."""
    logs.to_terminal(recipe.name)
    with runs.owned(recipe, f"{recipe.name}-failures", resume=False, again=True, command="failures") as owner:
        return _collect_failures(recipe, owner, file, attempts, cache, console)


def _collect_failures(recipe: Recipe, owner: Owner, file: Path, attempts: int, cache: Path, console: Console) -> int:
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"failures": None})})
    with _playing(recipe, owner, failures.passes(recipe), cache, console) as (tasks, model, play):
        found = failures.collect(tasks, attempts, play)
    failures.write(found, model, file)
    return len(found)


def gather_experience(recipe: Recipe, file: Path, plays: int, cache: Path, console: Console) -> tuple[int, int]:
    """Adds to a pool what the recipe's model shows on its training tasks, each played so many times; returns how many
    experiences are new, and how many there are."""
    settings = getattr(recipe.rollout, "experience", None)
    if settings is None:
        problem = f"the recipe's rollout {recipe.rollout.name} has none"
        raise SettingError("rollout.experience", problem, "Set rollout.experience.path: what reads the pool says how")
    logs.to_terminal(recipe.name)
    alone = _untold(recipe)
    known = experience.read(file) if file.exists() else []
    with runs.owned(alone, f"{alone.name}-experience", resume=False, again=True, command="experience") as owner:
        new = _experience(alone, settings.writer, owner, plays, cache, console)
    pool = experience.merged(known, new)
    experience.write(file, pool)
    return len(pool) - len(known), len(pool)


def _untold(recipe: Recipe) -> Recipe:
    """The same without experience, and without what only acts beside it."""
    learner = recipe.learner
    if getattr(learner.objective, "clip_high_navigated", None) is not None:
        objective = learner.objective.model_copy(update={"clip_high_navigated": None})
        learner = learner.model_copy(update={"objective": objective})
    rollout = recipe.rollout.model_copy(update={"experience": None})
    return recipe.model_copy(update={"rollout": rollout, "learner": learner})


def _experience(recipe: Recipe, writer, owner: Owner, plays: int, cache: Path, console: Console) -> list[dict]:
    from actors import environments
    from actors.environments.base import Teaches
    from actors.messages import asked
    from redraft.evaluation import experience as lessons
    from redraft.evaluation.played import Reader

    if recipe.environments:
        raise SettingError("environments", "experience is of one environment", "Name one, as environment")
    if writer is not None:
        writer.key()
    made = environments.make(recipe.environment)
    if writer is None and not isinstance(made, Teaches):
        problem = f"{recipe.environment.name} has no `lesson`, and nobody else is named"
        raise SettingError("rollout.experience.writer", problem, "Name an endpoint: {url: ..., model: ...}")
    with _playing(recipe, owner, lessons.passes(recipe, plays), cache, console) as (tasks, model, play):
        reader = Reader(model)
        played = [reader.episodes(turns) for turns in play(tasks)]
    told = [asked(made.reset(seed=0, options={"task": task})[0]) for task in tasks]
    if writer is None:
        teaching = cast(Teaches, made)
        found = [teaching.lesson(task, own) for task, own in zip(tasks, played, strict=True)]
    else:
        asking = lessons.Writer(writer)
        found = asking.lessons(list(zip(told, played, strict=True)))
        console.print(f"{asking.failed} requests brought no lesson")
    made.close()
    return [one | {"task": question} for question, own in zip(told, found, strict=True) for one in own]


@contextlib.contextmanager
def _playing(
    recipe: Recipe, owner: Owner, passes: Sequence[Pass], cache: Path, console: Console
) -> Iterator[tuple[Sequence[dict], Path, Callable[[Sequence[dict]], list[list[Turn]]]]]:
    """The recipe's training tasks, the folder of its model, and `play(tasks)`, which returns the turns of each in the
    one pass that there is."""
    from actors import mixture
    from actors.tally import Tally
    from redraft.control.evaluator import Exam, findings_of

    own_code.install(own_code.read(recipe.model_dump(mode="json")))
    recipe = preflight.with_facts(recipe)
    preflight.check_environment(recipe)
    tasks = mixture.tasks(recipe.mixture, "train")
    model = models.prepare(recipe.model, recipe.environment, cache, console.print)
    fits.check(model, recipe)
    run = runs.create(recipe, str(model), owner, again=True)
    with ray_for(recipe), _fleet(recipe, run, model, 0, LiveView(console, run.name)) as (fleet, status, serve):
        tally = Tally()

        def play(left: Sequence[dict]) -> list[list[Turn]]:
            exam = Exam(left, passes, fleet, status)
            serve(exam)
            if len(left) == len(tasks):
                exam.check()
            tally.add(exam.tally())
            return exam.played()[passes[0].label]

        yield tasks, model, play
    show_findings(findings_of(tally, recipe), console)


@contextlib.contextmanager
def _fleet(
    recipe: Recipe, run: Run, model: Path, version: int, view: LiveView
) -> Iterator[tuple[Fleet, Status, Callable[[Exam], None]]]:
    """A fleet that plays with a model as it is, beside a run that may go on: it, its status, and `serve(exam)`, which
    returns when the exam is over."""
    from actors.contract import Orders
    from redraft.control import workers
    from redraft.control.fleet import Fleet
    from redraft.control.status import Status

    room.check(recipe.model_copy(update={"steps": 0}), joined=run.cluster)  # no ranks are started
    apart = replace(run, id=secrets.token_hex(16))
    status = Status(run, recipe)
    actors = recipe.actors.model_copy(update={"metrics_port": 0})  # the run beside may have that port
    maker = workers.actor_maker(apart, recipe.model_copy(update={"actors": actors}), None, str(model), version)
    fleet = Fleet(maker, recipe.actors, recipe.start_s, status.replaced)
    status.phase("evaluating", model.name)

    def serve(exam: Exam) -> None:
        while not exam.advance():
            fleet.receive()
            for actor in fleet.idle():
                fleet.send(actor, Orders())
            view.update(status.snapshot())
            time.sleep(LOOK_S)

    try:
        with view:
            yield fleet, status, serve
    finally:
        fleet.close(5.0)
