"""Starting, watching and ending runs from the command line's process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from protocols.errors import RedraftError, SettingError
from redraft import logs, models
from redraft import recipe as recipes
from redraft import run as runs
from redraft.live import LiveView
from redraft.recipe import Recipe
from redraft.run import Run

log = logging.getLogger("redraft.launch")
POLL_S = 0.5
STOP_S = 120.0
ANSWER_S = 10.0


def train(recipe: Recipe, name: str | None, resume: bool, again: bool, cache: Path, console: Console) -> dict:
    """Runs a recipe to its end, with a live view; returns the summary. Ctrl-C stops the run, a second one kills it."""
    logs.to_terminal(name or recipe.name)
    for warning in recipe.warnings():
        log.warning("%s", warning)
    model = models.prepare(recipe.model, recipe.environment, cache, console.print)
    _check_model(model)
    run = runs.create(recipe, str(model), name, resume, again)
    with ray_for(recipe, run) as run:
        summary = _watch(recipe, run, resume, console)
    _show(run, recipe, summary, console)
    return summary


def _check_model(model: Path) -> None:
    from transformers import AutoTokenizer

    from actors.rendering import check_tokenizer

    check_tokenizer(AutoTokenizer.from_pretrained(str(model)))


@contextlib.contextmanager
def ray_for(recipe: Recipe, run: Run) -> Iterator[Run]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here for this run and ends it afterwards."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    needed = recipe.actors.count * recipe.actors.cpus + recipe.learner.ranks * recipe.learner.cpus
    local = dict(num_cpus=max(os.cpu_count() or 1, int(needed + 0.999)), include_dashboard=False)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    context = ray.init(
        address=address,
        namespace="redraft",
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if address else local),
    )
    run = replace(run, ray=context.address_info["gcs_address"])
    run.save()
    try:
        yield run
    finally:
        ray.shutdown()


def _watch(recipe: Recipe, run: Run, resume: bool, console: Console) -> dict:
    """Starts the controller and shows what it says until it ends."""
    import ray

    from redraft.controller import Controller

    controller = (
        ray.remote(Controller).options(name=actor_name(run), num_cpus=0, max_concurrency=16).remote(run, recipe, resume)
    )
    ended = controller.run.remote()
    with LiveView(console, run.name) as view:
        while True:
            try:
                while not ray.wait([ended], timeout=POLL_S)[0]:
                    view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
                view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
                return ray.get(ended)
            except KeyboardInterrupt:
                return _interrupted(controller, ended, view)
            except ray.exceptions.GetTimeoutError:
                log.warning("the controller has not answered for %.0f s", ANSWER_S)
            except ray.exceptions.RayActorError as error:
                raise RedraftError(f"the controller's process died: {error}. Go on with --resume") from None


def _interrupted(controller, ended, view: LiveView) -> dict:
    """Ctrl-C: stops the run kindly; another Ctrl-C, or the deadline, ends the wait, and Ray's end kills the rest."""
    import ray

    ray.get(controller.stop.remote(), timeout=ANSWER_S)
    until = time.monotonic() + STOP_S
    while not ray.wait([ended], timeout=POLL_S)[0]:
        view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
        if time.monotonic() > until:
            raise RedraftError(f"the run did not stop within {STOP_S:.0f} s and was killed. Go on with --resume")
    return ray.get(ended)


def _show(run: Run, recipe: Recipe, summary: dict, console: Console) -> None:
    from redraft.evaluation import table
    from redraft.report import write_report

    if summary.get("before"):
        console.print(table(summary["before"], summary.get("after"), recipe.environment.feedback, console.width))
    path = write_report(run.folder)
    console.print(f"{run.name}: {summary['state']} after {summary['steps']} steps, {summary['seconds']:.0f} s")
    console.print(f"report: {_relative(path)}")
    if summary["state"] == "stopped":
        console.print("Go on with --resume.")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def actor_name(run: Run) -> str:
    return f"controller-{run.id}"


def _controller(run: Run):
    """The handle of a run that goes on now. Raises RedraftError when it does not."""
    import ray

    if not run.ray:
        raise RedraftError(f"{run.name} never started")
    try:
        ray.init(address=run.ray, namespace="redraft", log_to_driver=False, logging_level=logging.CRITICAL)
        return ray.get_actor(actor_name(run))
    except (ConnectionError, ValueError, RuntimeError):
        raise RedraftError(f"{run.name} is not running") from None


def status(name: str) -> dict:
    """The controller's status, or the summary of a run that has ended."""
    import ray

    run = runs.find(name)
    summary = run.folder / "summary.json"
    try:
        return ray.get(_controller(run).status.remote(), timeout=ANSWER_S)
    except RedraftError:
        if not summary.exists():
            raise
    return json.loads(summary.read_text())


def stop(name: str) -> None:
    import ray

    ray.get(_controller(runs.find(name)).stop.remote(), timeout=ANSWER_S)


def evaluate(name: str, overrides: Sequence[str], step: int | None, console: Console) -> None:
    """Plays the test tasks with a checkpoint's weights; prints the table, adds a line to evaluations.jsonl."""
    import ray

    from actors import environments
    from actors.actor import Orders
    from learner import checkpoint
    from protocols.weights import version_of
    from redraft import parts
    from redraft.evaluation import table
    from redraft.exam import Exam
    from redraft.fleet import Fleet
    from redraft.status import Status

    run = runs.find(name)
    logs.to_terminal(run.name)
    recipe = recipes.load(run.folder / "recipe.yaml", overrides)
    folder = _checkpoint(run, step)
    state = checkpoint.read(folder, run.id, recipe.learner.ranks, recipe.learner.zero)
    tests = environments.tasks(recipe.environment, recipe.data, "test")
    began = time.monotonic()
    with ray_for(recipe, run) as run:
        status, where = Status(run, recipe), parts.endpoints(nodes=1)
        files = parts.start_node_files(run)
        maker = parts.actor_maker(run, recipe, where, str(folder / "model"), version_of(state.life, state.step))
        lost = lambda actor, why: status.event(f"actor-{actor} replaced: {why}")  # noqa: E731
        fleet = Fleet(maker, recipe.actors.count, recipe.start_s, recipe.actors.silence_s, lost)
        exam = Exam(recipe, tests, fleet, status)
        status.phase("evaluating", folder.name)
        with LiveView(console, run.name) as view:
            while not exam.advance():
                fleet.receive()
                for actor in fleet.idle():
                    fleet.send(actor, Orders())
                view.update(status.snapshot())
                time.sleep(POLL_S / 5)
        fleet.close(5.0)
        ray.wait([owner.close.remote() for owner in files], num_returns=len(files), timeout=5.0)
        parts.forget(where)
    summary = exam.summary()
    facts = {"label": "eval", "step": state.step, "version": version_of(state.life, state.step)}
    run.append("evaluations.jsonl", facts | {"seconds": round(time.monotonic() - began, 1)} | summary)
    console.print(table(None, summary, recipe.environment.feedback, console.width))


def _checkpoint(run: Run, step: int | None) -> Path:
    from learner import checkpoint

    found = checkpoint.newest(run.folder) if step is None else run.checkpoints / f"step-{step:06d}"
    if found is None or not found.exists():
        known = ", ".join(str(int(path.name[5:])) for path in sorted(run.checkpoints.glob("step-*"))) or "none"
        raise SettingError("--step", f"{run.name} has no such checkpoint", f"Steps with one: {known}")
    return found
