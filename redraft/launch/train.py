"""Starting a run, watching it to its end, and what is shown of it then: the command line's process."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from protocols import own_code, traces
from protocols.errors import FaultError, RedraftError, in_a_line
from protocols.reports import RunEnded, RunStatus
from redraft import logs
from redraft import run as runs
from redraft.config import StorageSettings
from redraft.control import client, cluster, discovery, faults, services
from redraft.launch import fits, offline, preflight, room, share
from redraft.models import make as models
from redraft.owner import Owner
from redraft.recipe import Recipe
from redraft.run import Run, Start
from redraft.storage import copies
from redraft.storage.store import said
from redraft.tracking import queue as trackers
from redraft.watch.live import LiveView, resuming, show_findings
from redraft.watch.story import Story

log = logging.getLogger("redraft.launch")
POLL_S = 0.5


def train(recipe: Recipe, name: str | None, resume: bool, again: bool, cache: Path, console: Console) -> RunEnded:
    """Runs a recipe to its end, with a live view; returns how it ended. Ctrl-C stops the run, a second one kills it.
    SIGTERM stops it so that it is to be gone on with."""
    story = Story(console)
    does = f"trains {recipe.steps} steps on" if recipe.steps else "only evaluates a model on"
    story.tell(f"{name or recipe.name} {does} {recipe.played}; first what the recipe names is looked for")
    logs.to_terminal(name or recipe.name, form=recipe.logs.format)
    for warning in recipe.warnings():
        log.warning("%s", warning)
    if not (resume or again) and runs.failed_at_start(name or recipe.name):
        again = True
        log.warning("an earlier run of this name failed before its first step; it is kept under another name")
    evicted, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    _on_eviction(evicted)
    try:
        with runs.owned(recipe, name, resume, again) as owner:
            return _train(recipe, owner, resume, again, cache, console, story, evicted)
    except (KeyboardInterrupt, SystemExit) as told:  # while Ray starts, SIGTERM is its own to handle
        if not evicted.is_set() and getattr(told, "code", None) != signal.SIGTERM:
            raise
        problem = f"{name or recipe.name}: told to end by SIGTERM. Go on with --resume, where it has begun"
        raise FaultError(problem) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _train(
    recipe: Recipe,
    owner: Owner,
    resume: bool,
    again: bool,
    cache: Path,
    console: Console,
    story: Story,
    evicted: threading.Event,
) -> RunEnded:
    cluster.check(resume)
    discovery.check(recipe.metrics, bool(cluster.joined()))
    trackers.check(recipe.tracking)
    traces.check(recipe.logs.traces)
    if recipe.storage is not None:
        copies.check(owner.folder, recipe.storage, resume, again)
    values = recipe.model_dump(mode="json")
    own_code.install((own_code.kept(values, owner.folder) if resume else {}) | own_code.read(values))
    recipe = preflight.with_facts(recipe)
    preflight.check_environment(recipe)
    if recipe.steps:
        preflight.check_learner(recipe)
    start, model = _model(recipe, owner, resume, cache, story)
    identity = None if resume or not recipe.replay.services else services.unused(recipe.replay)
    pool = ThreadPoolExecutor(1)
    fit = pool.submit(fits.check, model, recipe)  # it imports for seconds, in which Ray starts
    pool.shutdown(wait=False)
    story.tell("Ray: it runs each part in a process of its own; meanwhile, whether the model and the recipe fit")
    with cluster.ray_for(recipe, resume) as address:
        _on_eviction(evicted)  # Ray has put a handler of its own in its place
        room.check(recipe, joined=bool(cluster.joined()))
        fit.result()
        run = runs.create(recipe, str(model), owner, resume, again, identity, start)
        run = replace(run, ray=address, cluster=bool(cluster.joined()))
        run.save()
        recipe = share.chosen(recipe, model, story.tell)
        if recipe.storage is not None:
            copies.begin(run)
        view = LiveView(console, run.name, story)
        summary = _watch(recipe, run, resume, view, evicted) if recipe.steps else _only_evaluate(recipe, run, view)
    try:
        _show(run, recipe, summary, console)
    finally:
        if recipe.storage is not None:
            _copy_last(run, recipe, recipe.storage, story)
    return summary


def _copy_last(run: Run, recipe: Recipe, storage: StorageSettings, story: Story) -> None:
    """Copies the run as it has ended. Where that fails it is said, and the run has ended all the same."""
    story.tell(f"the last copy, to {storage.url}; Ctrl-C leaves it out")
    try:
        copies.Copies(run, storage, recipe.learner.keep_checkpoints).copy()
    except (RedraftError, OSError) as error:
        log.warning("the run as it has ended is not copied: %s", said(error))
    except KeyboardInterrupt:
        log.warning("the run as it has ended is not copied: told to end")


def _model(recipe: Recipe, owner: Owner, resume: bool, cache: Path, story: Story) -> tuple[Start, Path]:
    """The start model, and where it is here. Raises SettingError where there is none, or where it is not the one that
    the run to resume began with."""
    if resume:
        run = runs.find(str(owner.folder))
        return run.start, models.wanted(run, recipe).here(cache)
    model = models.prepare(recipe.model, recipe.environment, cache, story.tell)
    return models.begun(recipe.model, recipe.environment, model, cache), model


def _watch(recipe: Recipe, run: Run, resume: bool, view: LiveView, evicted: threading.Event) -> RunEnded:
    """Starts the controller and shows what it says until it ends. SIGTERM, as schedulers send it, is like Ctrl-C."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    from redraft.control import workers
    from redraft.control.controller import CALLS_AT_ONCE, Controller

    part = ray.remote(Controller).options(
        name=client.actor_name(run), num_cpus=0, max_concurrency=CALLS_AT_ONCE, scheduling_strategy=workers.here()
    )
    controller = part.remote(run, recipe, resume)
    ended = controller.run.remote()
    goes_on = _goes_on(run)
    with view:
        view.update(RunStatus(run.name, recipe.steps, detail="waiting for the controller"))
        while True:
            try:
                while not ray.wait([ended], timeout=POLL_S)[0]:
                    view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
                view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
                return ray.get(ended)
            except KeyboardInterrupt:
                return _interrupted(controller, ended, view, recipe.stop_s, evicted.is_set(), goes_on)
            except GetTimeoutError:
                log.warning("the controller has not answered for %.0f s", client.ANSWER_S)
            except RayActorError as error:
                problem = f"the controller's process died: {faults.of_a_call(error)}".removesuffix(".")
                raise FaultError(f"{problem}. {goes_on}") from None


def _on_eviction(evicted: threading.Event) -> None:
    """From now on SIGTERM, by which whoever gave the machine takes it away, is like Ctrl-C, and sets `evicted`: Ray
    puts a KeyboardInterrupt of its own in the place of what a handler raises."""

    def told(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray's job server sends it to a command and to its supervisor
        evicted.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, told)


def _only_evaluate(recipe: Recipe, run: Run, view: LiveView) -> RunEnded:
    """A run of no steps: the model as it is plays the test tasks; its figures are those before training."""
    from actors import mixture
    from redraft.control.evaluator import Occasion

    began = time.monotonic()
    tests = mixture.tasks(recipe.mixture, "test")
    occasion = Occasion("before", step=0, version=0)
    before, findings = offline.exam(recipe, run, Path(run.model), occasion, tests, view)
    for finding in findings:
        run.append("findings.jsonl", finding.to_json())
    line = occasion.line(began, before)
    run.append("evaluations.jsonl", line.to_json())
    told = trackers.Trackers(run, recipe, lambda text, once: log.warning("%s", text))
    told.start(0)
    told.evaluation(0, before)
    told.close("done")
    summary = RunEnded(run.name, "done", before=before, seconds=line.seconds, findings=tuple(findings))
    run.write("summary.json", summary.to_json())
    return summary


def _interrupted(controller, ended, view: LiveView, limit_s: float, evicted: bool, goes_on: str) -> RunEnded:
    """Told to stop: stops the run kindly; told again, or at the deadline, it ends the wait, and Ray's end kills the
    rest. Raises FaultError then."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    until = time.monotonic() + limit_s
    try:
        controller.stop.remote(evicted)
        while not ray.wait([ended], timeout=POLL_S)[0]:
            with contextlib.suppress(GetTimeoutError):  # of a busy machine: the deadline is that of the stop
                view.update(ray.get(controller.status.remote(), timeout=client.ANSWER_S))
            if time.monotonic() > until:
                problem = f"the run did not stop within stop_s={limit_s:g} s and was killed"
                raise FaultError(f"{problem}. {goes_on}")
        return ray.get(ended)
    except (KeyboardInterrupt, RayError) as error:
        problem = f"the run was killed before it had stopped ({in_a_line(error)})"
        raise FaultError(f"{problem}. {goes_on}") from None


def _show(run: Run, recipe: Recipe, summary: RunEnded, console: Console) -> None:
    """How a run ended: all figures, the headline, one dialogue, where the report is, and how to go on."""
    from redraft.report import dialogues
    from redraft.report.headline import headline
    from redraft.report.page import relative, write_report
    from redraft.report.tables import table

    report = relative(write_report(run.folder))
    if summary.before:
        console.print(table(summary.before, summary.after, recipe.feedback, console.width))
    show_findings(summary.findings, console)
    early = f", early: {summary.early}" if summary.early else ""
    console.print(f"{run.name}: {summary.state} after {summary.steps} steps, {summary.seconds:.0f} s{early}")
    if summary.before:
        console.print(Text(headline(summary.before, summary.after), "bold"), soft_wrap=True)
    if (example := dialogues.example(dialogues.pairs(run.folder))) is not None:
        console.print(example)
    console.print(f"report: {report}", soft_wrap=True)
    if summary.state in ("stopped", "failed") and summary.steps:
        console.print(_goes_on(run), markup=False, highlight=False, soft_wrap=True)
    if summary.state == "done":
        console.print("\n".join(next_commands(run)), markup=False, highlight=False, soft_wrap=True)


def _goes_on(run: Run) -> str:
    from redraft.report.page import relative

    return f"Go on with: {resuming(run.name, relative(run.folder))}"


def next_commands(run: Run) -> list[str]:
    """The commands with which people go on from a run, as they may type them."""
    from learner import checkpoint
    from redraft.report.page import relative

    called = Path(sys.argv[0]).absolute()
    command = "redraft" if shutil.which("redraft") == str(called) else str(relative(called))
    command = command if called.name == "redraft" else "python -m redraft"
    known = [("view", "reads what was said, turn by turn"), ("report", "writes the report anew")]
    if checkpoint.newest(run.folder) is not None:
        known.append(("chat", "talks to the trained model"))
    lines = [(f"{command} {verb} {run.name}", what) for verb, what in known]
    width = max(len(line) for line, _ in lines)
    return [f"  {line:{width}}  {what}" for line, what in lines]
