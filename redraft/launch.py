"""Starting, watching and ending runs from the command line's process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.named import OwnSettings
from redraft import failures, fits, logs, models, services, trackers
from redraft import recipe as recipes
from redraft import run as runs
from redraft.live import LiveView
from redraft.owner import Owner
from redraft.recipe import Recipe
from redraft.run import Run

# Ray reads these when it is imported. Processes that disagree about the first cannot talk: a local cluster asks for the
# token that Ray keeps in the user's home, which also keeps other users of the machine out. By default Ray also
# keeps every call for its dashboard, which is off: 39 MB for 10,000 calls, and each actor is called 20 times a second.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")

log = logging.getLogger("redraft.launch")
POLL_S = 0.5
ANSWER_S = 10.0


def train(recipe: Recipe, name: str | None, resume: bool, again: bool, cache: Path, console: Console) -> dict:
    """Runs a recipe to its end, with a live view; returns the summary. Ctrl-C stops the run, a second one kills it."""
    logs.to_terminal(name or recipe.name)
    for warning in recipe.warnings():
        log.warning("%s", warning)
    with runs.owned(recipe, name, resume, again) as owner:
        return _train(recipe, owner, resume, again, cache, console)


def _train(recipe: Recipe, owner: Owner, resume: bool, again: bool, cache: Path, console: Console) -> dict:
    trackers.check(recipe.tracking)
    _check_environment(recipe)
    if recipe.steps:
        _check_learner(recipe)
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


def _check_environment(recipe: Recipe) -> None:
    """Raises SettingError for an environment or a rollout that cannot be made, or that do not fit, or without tasks,
    for a curriculum of tasks without levels, or for an engine that this machine cannot load."""
    from actors import environments, rollouts
    from actors.engines import vllm_common
    from actors.tasks import TaskOrder

    if recipe.actors.engine.name == "vllm":
        vllm_common.check_libraries()

    rollouts.find(recipe.rollout.name)
    if teacher := getattr(recipe.rollout, "teacher", None):
        teacher.key()
    made = environments.make(recipe.environment)
    if recipe.rollout.kind == "actions" and not made.many_actions:
        problem = f"{recipe.rollout.name} plays many actions, {recipe.environment.name} asks for one answer"
        raise SettingError("rollout.name", problem, "Use attempt, retry, reflect or hint")
    if lacking := [kind for kind in recipe.evaluation.feedbacks if kind not in made.feedbacks]:
        known = f"Use {', '.join(made.feedbacks)}"
        raise SettingError("evaluation.feedbacks", f"{recipe.environment.name} has no {lacking[0]!r}", known)
    if lacking := [hook for hook in recipe.rollout.hooks if not hasattr(made, hook)]:
        problem = f"rollout {recipe.rollout.name} needs an environment with `{lacking[0]}`"
        raise SettingError("environment.name", problem, "Add it (actors/environments/base.py), or name another one")
    tasks = {split: environments.tasks(recipe.environment, recipe.data, split) for split in ("train", "test")}
    if recipe.curriculum is not None:
        TaskOrder(tasks["train"], recipe.seed, recipe.curriculum)


def _check_learner(recipe: Recipe) -> None:
    """Raises SettingError for a credit or an objective that cannot be found."""
    from learner import credits

    credits.find(recipe.learner.credit)
    if isinstance(recipe.learner.objective, OwnSettings):  # the known ones are there, and take long to import
        from learner import objectives

        objectives.make(recipe.learner.objective)


@contextlib.contextmanager
def ray_for(recipe: Recipe) -> Iterator[str]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here and ends it afterwards; yields the cluster's address."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    actors = recipe.actors.autoscale.max if recipe.actors.autoscale else recipe.actors.count
    needed = actors * recipe.actors.cpus + recipe.learner.ranks * recipe.learner.cpus
    local = dict(num_cpus=max(os.cpu_count() or 1, int(needed + 0.999)), include_dashboard=False)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    context = ray.init(
        address=address,
        namespace="redraft",
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if address else local),
    )
    try:
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()


def _watch(recipe: Recipe, run: Run, resume: bool, console: Console) -> dict:
    """Starts the controller and shows what it says until it ends. SIGTERM, as schedulers send it, is like Ctrl-C."""
    import ray

    from redraft import parts
    from redraft.controller import Controller

    part = ray.remote(Controller).options(
        name=actor_name(run), num_cpus=0, max_concurrency=16, scheduling_strategy=parts.here()
    )
    controller = part.remote(run, recipe, resume)
    ended = controller.run.remote()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LiveView(console, run.name) as view:
        while True:
            try:
                while not ray.wait([ended], timeout=POLL_S)[0]:
                    view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
                view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
                return ray.get(ended)
            except KeyboardInterrupt:
                return _interrupted(controller, ended, view, recipe.stop_s)
            except ray.exceptions.GetTimeoutError:
                log.warning("the controller has not answered for %.0f s", ANSWER_S)
            except ray.exceptions.RayActorError as error:
                raise RedraftError(f"the controller's process died: {error}. Go on with --resume") from None


def _only_evaluate(recipe: Recipe, run: Run, console: Console) -> dict:
    """A run of no steps: the model as it is plays the test tasks; its figures are those before training."""
    from actors import environments

    began = time.monotonic()
    tests = environments.tasks(recipe.environment, recipe.data, "test")
    facts = {"label": "before", "step": 0, "version": 0}
    before = _exam(recipe, run, Path(run.model), facts, tests, console)
    seconds = round(time.monotonic() - began, 1)
    run.append("evaluations.jsonl", facts | {"seconds": seconds} | before)
    told = trackers.Trackers(run, recipe, lambda text, once: log.warning("%s", text))
    told.start(0)
    told.evaluation(0, before)
    told.close("done")
    summary = {"name": run.name, "state": "done", "error": "", "before": before}
    summary |= {"steps": 0, "seconds": seconds, "generations": 0, "attempts": 0}
    run.write("summary.json", summary)
    return summary


def _interrupted(controller, ended, view: LiveView, limit_s: float) -> dict:
    """Ctrl-C: stops the run kindly; another Ctrl-C, or the deadline, ends the wait, and Ray's end kills the rest."""
    import ray

    until = time.monotonic() + limit_s
    try:
        ray.get(controller.stop.remote(), timeout=ANSWER_S)
        while not ray.wait([ended], timeout=POLL_S)[0]:
            view.update(ray.get(controller.status.remote(), timeout=ANSWER_S))
            if time.monotonic() > until:
                problem = f"the run did not stop within stop_s={limit_s:g} s and was killed"
                raise RedraftError(f"{problem}. Go on with --resume")
        return ray.get(ended)
    except (KeyboardInterrupt, ray.exceptions.RayError) as error:
        raise RedraftError(f"the run was killed before it had stopped ({error!r}). Go on with --resume") from None


def _show(run: Run, recipe: Recipe, summary: dict, console: Console) -> None:
    from redraft import dialogues
    from redraft.report import write_report
    from redraft.tables import table

    if summary.get("before"):
        console.print(table(summary["before"], summary.get("after"), recipe.environment.feedback, console.width))
    if (example := dialogues.example(dialogues.pairs(run.folder))) is not None:
        console.print(example)
    _show_findings(summary, console)
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

    gone = RedraftError(f"{run.name} is not running")
    host, _, port = run.ray.rpartition(":")
    try:
        if not ray.is_initialized():  # Ray itself would wait for minutes for a cluster that has ended
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            ray.init(address=run.ray, namespace="redraft", log_to_driver=False, logging_level=logging.CRITICAL)
        return ray.get_actor(actor_name(run))
    except ray.exceptions.AuthenticationError:
        cure = "set RAY_AUTH_TOKEN_PATH to the file of its cluster's token"
        raise RedraftError(f"Ray at {run.ray} wants another token than this user's: {cure}") from None
    except (OSError, ValueError, RuntimeError):
        raise gone from None


def show_status(name: str, console: Console) -> None:
    """What a run is doing, or how it ended, in a few lines."""
    from redraft.live import panel

    found = status(name)
    if "summary" not in found:
        console.print(panel(name, found))
        return
    summary = found["summary"]
    console.print(f"{name}: {summary['state']} after {summary['steps']} steps, {summary['seconds']:.0f} s")
    if summary["error"]:
        console.print(summary["error"])
    _show_findings(summary, console)


def _show_findings(summary: dict, console: Console) -> None:
    """Causes why a run that has ended could not learn."""
    for finding in summary.get("findings") or ():
        lasted = "to the end" if finding["until_s"] is None else f"to {finding['until_s']:.0f} s"
        text = f"from {finding['since_s']:.0f} s {lasted}: {finding['problem']} {finding['cure']}"
        console.print(text, markup=False, soft_wrap=True)


def status(name: str) -> dict:
    """The controller's status, or {"summary": ...} of a run that has ended. Raises RedraftError without either."""
    import ray

    run = runs.find(name)
    summary = run.folder / "summary.json"
    try:
        return ray.get(_controller(run).status.remote(), timeout=ANSWER_S)
    except RedraftError:
        if not summary.exists():
            raise
    return {"summary": json.loads(summary.read_text())}


def stop(name: str) -> None:
    import ray

    ray.get(_controller(runs.find(name)).stop.remote(), timeout=ANSWER_S)


def grow(name: str) -> int:
    """Gives a run that goes on one more replay service; returns how many there are."""
    run = runs.find(name)
    limit_s = 2 * recipes.load(run.folder / "recipe.yaml").start_s + ANSWER_S
    return _ask(run, "redraft replay grow", limit_s, lambda controller: controller.add_shard.remote())


def scale(name: str, count: int) -> int:
    """Sets how many actors a run that goes on shall have; returns how many it should have before."""
    if count < 1:
        raise SettingError("N", f"{count} is no number of actors", "Give 1 or more; `redraft stop` ends a run")
    return _ask(runs.find(name), "redraft scale", ANSWER_S, lambda controller: controller.scale.remote(count))


def _ask(run: Run, command: str, limit_s: float, call):
    """What the controller of a run answers to a call. Raises the error that it answers with."""
    import ray

    try:
        return ray.get(call(_controller(run)), timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineError(command, f"the controller of {run.name}", limit_s) from None
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RedraftError) else RedraftError(repr(error.cause))) from None


def evaluate(name: str, overrides: Sequence[str], step: int | None, cache: Path, console: Console) -> None:
    """Plays the test tasks with a checkpoint's weights; prints the table, adds a line to evaluations.jsonl."""
    with runs.reading(name) as run:
        logs.to_terminal(run.name)
        _evaluate(run, overrides, step, cache, console)


def _evaluate(run: Run, overrides: Sequence[str], step: int | None, cache: Path, console: Console) -> None:
    from actors import environments
    from learner import checkpoint
    from protocols.weights import version_of
    from redraft.tables import table

    recipe = recipes.load(run.folder / "recipe.yaml", overrides)
    folder = runs.checkpoint_at(run, step)
    state = checkpoint.read(folder, run.id, recipe.learner.ranks, recipe.learner.zero)
    facts = {"label": "eval", "step": state.step, "version": version_of(state.life, state.step)}
    tests = environments.tasks(recipe.environment, recipe.data, "test")
    model = models.of_checkpoint(folder, run.model, cache)
    began = time.monotonic()
    with ray_for(recipe):
        summary = _exam(recipe, run, model, facts, tests, console)
    run.append("evaluations.jsonl", facts | {"seconds": round(time.monotonic() - began, 1)} | summary)
    console.print(table(None, summary, recipe.environment.feedback, console.width))


def _exam(recipe: Recipe, run: Run, model: Path, facts: dict, tests: Sequence[dict], console: Console) -> dict:
    """The figures of the model in a folder; `facts` are the evaluation's label, step and version."""
    from redraft.evaluation import plays
    from redraft.exam import Exam, chosen

    passes = plays(recipe.evaluation, recipe.rollout, recipe.sampling)
    with _fleet(recipe, run, model, facts["version"], console) as (fleet, status, serve):
        exam = Exam(chosen(tests, recipe.evaluation.n), passes, fleet, status)
        serve(exam)
        if recipe.learner.record.groups:
            exam.record(run.folder, facts)
        return exam.summary()


def collect_failures(recipe: Recipe, file: Path, attempts: int, cache: Path, console: Console) -> int:
    """Writes a dataset of failures of the recipe's model; returns how many there are. See redraft.failures."""
    logs.to_terminal(recipe.name)
    with runs.owned(recipe, f"{recipe.name}-failures", resume=False, again=True, command="failures") as owner:
        return _collect_failures(recipe, owner, file, attempts, cache, console)


def _collect_failures(recipe: Recipe, owner: Owner, file: Path, attempts: int, cache: Path, console: Console) -> int:
    from actors import environments
    from redraft.exam import Exam

    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"failures": None})})
    _check_environment(recipe)
    tasks = environments.tasks(recipe.environment, recipe.data, "train")
    model = models.prepare(recipe.model, recipe.environment, cache, console.print)
    fits.check(model, recipe)
    run = runs.create(recipe, str(model), owner, again=True)
    with ray_for(recipe), _fleet(recipe, run, model, 0, console) as (fleet, status, serve):

        def play(left: Sequence[dict]):
            exam = Exam(left, failures.passes(recipe), fleet, status)
            serve(exam)
            return exam.played()[failures.LABEL]

        found = failures.collect(tasks, attempts, play)
    failures.write(found, model, file)
    return len(found)


@contextlib.contextmanager
def _fleet(recipe: Recipe, run: Run, model: Path, version: int, console: Console):
    """A fleet that plays with a model as it is, beside a run that may go on: it, its status, and `serve(exam)`, which
    returns when the exam is over."""

    from actors.actor import Orders
    from redraft import parts
    from redraft.fleet import Fleet
    from redraft.status import Status

    apart = replace(run, id=secrets.token_hex(16))
    status = Status(run, recipe)
    actors = recipe.actors.model_copy(update={"metrics_port": 0})  # the run beside may have that port
    maker = parts.actor_maker(apart, recipe.model_copy(update={"actors": actors}), None, str(model), version)
    fleet = Fleet(maker, recipe.actors, recipe.start_s, status.replaced)
    status.phase("evaluating", model.name)

    def serve(exam) -> None:
        while not exam.advance():
            fleet.receive()
            for actor in fleet.idle():
                fleet.send(actor, Orders())
            view.update(status.snapshot())
            time.sleep(POLL_S / 5)

    try:
        with LiveView(console, run.name) as view:
            yield fleet, status, serve
    finally:
        fleet.close(5.0)
