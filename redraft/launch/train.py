"""Starting a run, watching it to its end, and what is shown of it then: the command line's process."""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from protocols.errors import RedraftError
from protocols.reports import RunEnded
from redraft import logs
from redraft import run as runs
from redraft.control import client, services
from redraft.control.cluster import ray_for
from redraft.launch import fits, offline, preflight
from redraft.models import make as models
from redraft.owner import Owner
from redraft.recipe import Recipe
from redraft.run import Run
from redraft.tracking import queue as trackers
from redraft.watch.live import LiveView, show_findings

log = logging.getLogger("redraft.launch")
POLL_S = 0.5


def train(recipe: Recipe, name: str | None, resume: bool, again: bool, cache: Path, console: Console) -> RunEnded:
    """Runs a recipe to its end, with a live view; returns how it ended. Ctrl-C stops the run, a second one kills it."""
    logs.to_terminal(name or recipe.name)
    for warning in recipe.warnings():
        log.warning("%s", warning)
    with runs.owned(recipe, name, resume, again) as owner:
        return _train(recipe, owner, resume, again, cache, console)


def _train(recipe: Recipe, owner: Owner, resume: bool, again: bool, cache: Path, console: Console) -> RunEnded:
    trackers.check(recipe.tracking)
    preflight.check_environment(recipe)
    if recipe.steps:
        preflight.check_learner(recipe)
    model = models.prepare(recipe.model, recipe.environment, cache, console.print)
    identity = None if resume or not recipe.replay.services else services.unused(recipe.replay)
    pool = ThreadPoolExecutor(1)
    fit = pool.submit(fits.check, model, recipe)  # it imports for seconds, in which Ray starts
    pool.shutdown(wait=False)
    with ray_for(recipe) as address:
        fit.result()
        run = runs.create(recipe, str(model), owner, resume, again, identity)
        run = replace(run, ray=address, cluster=bool(os.environ.get("RAY_ADDRESS")))
        run.save()
        summary = _watch(recipe, run, resume, console) if recipe.steps else _only_evaluate(recipe, run, console)
    _show(run, recipe, summary, console)
    return summary


def _watch(recipe: Recipe, run: Run, resume: bool, console: Console) -> RunEnded:
    """Starts the controller and shows what it says until it ends. SIGTERM, as schedulers send it, is like Ctrl-C."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    from redraft.control import workers
    from redraft.control.controller import Controller

    part = ray.remote(Controller).options(
        name=client.actor_name(run), num_cpus=0, max_concurrency=16, scheduling_strategy=workers.here()
    )
    controller = part.remote(run, recipe, resume)
    ended = controller.run.remote()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LiveView(console, run.name) as view:
        while True:
            try:
                while not ray.wait([ended], timeout=POLL_S)[0]:
                    view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
                view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
                return ray.get(ended)
            except KeyboardInterrupt:
                return _interrupted(controller, ended, view, recipe.stop_s)
            except GetTimeoutError:
                log.warning("the controller has not answered for %.0f s", client.ANSWER_S)
            except RayActorError as error:
                raise RedraftError(f"the controller's process died: {error}. Go on with --resume") from None


def _only_evaluate(recipe: Recipe, run: Run, console: Console) -> RunEnded:
    """A run of no steps: the model as it is plays the test tasks; its figures are those before training."""
    from actors import environments
    from redraft.control.evaluator import Occasion

    began = time.monotonic()
    tests = environments.tasks(recipe.environment, recipe.data, "test")
    occasion = Occasion("before", step=0, version=0)
    before = offline.exam(recipe, run, Path(run.model), occasion, tests, console)
    seconds = round(time.monotonic() - began, 1)
    run.append("evaluations.jsonl", occasion.line(seconds, before))
    told = trackers.Trackers(run, recipe, lambda text, once: log.warning("%s", text))
    told.start(0)
    told.evaluation(0, before)
    told.close("done")
    summary = RunEnded(run.name, "done", before=before, seconds=seconds)
    run.write("summary.json", summary.to_json())
    return summary


def _interrupted(controller, ended, view: LiveView, limit_s: float) -> RunEnded:
    """Ctrl-C: stops the run kindly; another Ctrl-C, or the deadline, ends the wait, and Ray's end kills the rest."""
    import ray
    from ray.exceptions import RayError

    until = time.monotonic() + limit_s
    try:
        ray.get(controller.stop.remote(), timeout=client.ANSWER_S)
        while not ray.wait([ended], timeout=POLL_S)[0]:
            view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
            if time.monotonic() > until:
                problem = f"the run did not stop within stop_s={limit_s:g} s and was killed"
                raise RedraftError(f"{problem}. Go on with --resume")
        return ray.get(ended)
    except (KeyboardInterrupt, RayError) as error:
        raise RedraftError(f"the run was killed before it had stopped ({error!r}). Go on with --resume") from None


def _show(run: Run, recipe: Recipe, summary: RunEnded, console: Console) -> None:
    from redraft.report import dialogues
    from redraft.report.page import write_report
    from redraft.report.tables import table

    if summary.before:
        console.print(table(summary.before, summary.after, recipe.environment.feedback, console.width))
    if (example := dialogues.example(dialogues.pairs(run.folder))) is not None:
        console.print(example)
    show_findings(summary.findings, console)
    path = write_report(run.folder)
    console.print(f"{run.name}: {summary.state} after {summary.steps} steps, {summary.seconds:.0f} s")
    console.print(f"report: {_relative(path)}")
    if summary.state == "stopped":
        console.print("Go on with --resume.")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
