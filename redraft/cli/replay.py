"""`redraft replay`: the replay service alone, and tools for what it keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from protocols import strict_json
from protocols.errors import SettingError
from redraft.logs import LogFormat

app = typer.Typer(help="The replay service alone, and tools for what it keeps.", no_args_is_help=True)
STATES = "used,ready,claimed,filtered"

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A run (name or folder: all its shards), or a spool.")]
Keys = Annotated[Path | None, typer.Option(help="Folder of CURVE keys, see `redraft keys new`; for tcp endpoints.")]
RunId = Annotated[str, typer.Option(help="Identity of the run whose turns the spool keeps.")]


@app.command()
def serve(
    folder: Annotated[Path, typer.Option(help="The spool; made if it is missing.")],
    ingest: Annotated[str, typer.Option(help="Where actors send turns, e.g. tcp://0.0.0.0:5555.")],
    serve_at: Annotated[str, typer.Option("--serve", help="Where groups are asked for, e.g. tcp://0.0.0.0:5556.")],
    run_id: RunId,
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="e.g. max_uses=2")] = None,
    keys: Keys = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics here; 0: on any free port.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option("--logs", help="As logs.format of a recipe, on stderr.")] = "text",
) -> None:
    """Run a replay service alone, until SIGTERM or Ctrl-C. Settings are those of `replay` in a recipe."""
    import logging

    from redraft import logs
    from replay.config import Endpoints
    from replay.tools import standalone

    logs.to_terminal(run_id, logging.INFO, log_format, "replay")
    chosen = standalone.settings(settings or ())
    standalone.serve(folder, Endpoints(ingest, serve_at), chosen, run_id, keys, metrics_port, typer.echo)


@app.command()
def stats(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="A run (all its shards), or a spool.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Instead: the serve endpoint of a live service.")] = None,
    keys: Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """How many groups there are in which state, and what they take. Disturbs no service."""
    from protocols.replay_stats import HeldStats, combined
    from replay.keys import client_keys
    from replay.tools import stats as counts
    from replay.tools.verify import apart

    if (source is None) == (at is None):
        raise SettingError("SOURCE", "give either a source or --at", "Name a run, a spool or a live service")
    columns: dict[str, HeldStats] = {}
    if at is not None:
        columns[at] = counts.ask(at, client_keys(keys) if keys else None)
    elif source is not None:
        folders, run_id = _spools(source)
        spools = list(apart(counts.of_spools, folders, run_id))
        columns |= {folder.name: spool for folder, spool in zip(folders, spools, strict=True)}
        if len(spools) > 1:
            columns["all"] = combined(spools)
    told = {name: column.to_json() for name, column in columns.items()}
    if as_json:
        *shards, whole = told.values()
        print(strict_json.dumps(whole | ({"shards": shards} if shards else {})))
    else:
        _show(told)


@app.command()
def verify(source: Source) -> None:
    """Read every byte of a spool, or of a run's, and name the groups that are corrupt. Exit code 1 when there are any.

    Writes nothing, and works beside a service; the spool may grow meanwhile, since freed room is not used again.
    """
    from replay.tools import verify as reading

    folders, run_id = _spools(source)
    began = time.monotonic()
    ends = [_follow("verifying", reading.verify(folder, run_id)) for folder in folders]
    groups, rows, size, corrupt = (sum(numbers) for numbers in zip(*ends, strict=True))
    said = f"{corrupt} found corrupt" if corrupt else "all groups are whole"
    typer.echo(f"{said}: {groups} groups, {rows} rows, {size} bytes, {time.monotonic() - began:.1f} s")
    raise typer.Exit(1 if corrupt else 0)


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A Parquet file that is not there yet.")],
    state: Annotated[str, typer.Option(help="The states of the groups to write.")] = STATES,
) -> None:
    """Write closed groups to Parquet, one row a turn; see replay/tools/parquet.py for the columns.

    Corrupt groups are named and left out, and the exit code is 1.
    """
    from replay.tools import parquet

    folders, run_id = _spools(source)
    groups, rows, size, corrupt = _follow("exporting", parquet.export(folders, run_id, out, state.split(",")))
    left_out = f"; what is corrupt is left out ({corrupt})" if corrupt else ""
    typer.echo(f"{out}: {groups} groups, {rows - groups} turns{left_out}")
    raise typer.Exit(1 if corrupt else 0)


@app.command("import")
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `redraft replay export`.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A spool that no service works on, or a new one.")],
    run_id: RunId,
) -> None:
    """Put exported groups into a spool, ready to be served. What is there already stays as it is.

    Groups that are not whole are named and left out, and the exit code is 1.
    """
    from collections import Counter

    from replay.tools import parquet
    from replay.tools.verify import Corruption

    outcomes: Counter[str] = Counter()
    for found in parquet.load(file, folder, run_id):
        if isinstance(found, Corruption):
            typer.echo(f"corrupt: {found}")
        outcomes["corrupt" if isinstance(found, Corruption) else found] += 1
    typer.echo(f"{folder}: " + ", ".join(f"{outcomes[name]} {name}" for name in ("stored", "duplicate", "fenced")))
    raise typer.Exit(1 if outcomes["corrupt"] else 0)


@app.command()
def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A name under runs/, or a run folder.")],
    to: Annotated[int | None, typer.Option(metavar="STEP", min=1, help="Stop after this step.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the model of the last step into a new folder.")
    ] = None,
) -> None:
    """Train a run again from what it kept (learner.record.batches), and compare the weights of each version.

    On the same machine they are the same, bit for bit. Exit code 1 where one is not.
    """
    from protocols import cache
    from redraft.launch.again import again
    from redraft.run import find

    began, compared, equal = time.monotonic(), 0, 0
    for made in again(find(run), to, out, cache.folder("models")):
        if not made.recorded:
            typer.echo(f"step {made.step}: no version was published")
            continue
        compared, equal = compared + 1, equal + made.equal
        said = "equal" if made.equal else "NOT equal"
        typer.echo(f"step {made.step}: version {made.version}, recorded {made.recorded}, made {made.made}, {said}")
    typer.echo(f"{equal} of {compared} versions are equal, {time.monotonic() - began:.1f} s")
    raise typer.Exit(1 if equal < compared else 0)


@app.command()
def grow(run: Annotated[str, typer.Argument(metavar="RUN", help="A name under runs/, or a run folder.")]) -> None:
    """Give a run that goes on one more replay service, for new groups; nothing restarts."""
    from redraft.control import client

    typer.echo(f"{run} has {client.grow(run)} shards of replay")


def _spools(source: str) -> tuple[list[Path], str | None]:
    """The spool folders that `source` means, and their run's identity where it is a run. Raises SettingError."""
    from redraft.run import find

    if (Path(source) / "data.mdb").exists():
        return [Path(source)], None
    try:
        run = find(source)
    except SettingError as error:
        problem = f"{source} is neither a spool (a folder with a data.mdb) nor a run"
        raise SettingError("SOURCE", problem, str(error).partition(". ")[2]) from None
    folders = [run.spool(shard) for shard in range(run.shards)]
    if not folders:
        cure = "It has one once its replay service has started"
        raise SettingError("SOURCE", f"the run {run.name} has no spool", cure)
    return folders, run.id


def _follow(title: str, work: Iterator) -> tuple[int, int, int, int]:
    """Shows how far a reader is and prints what is corrupt; how many groups, rows, bytes and corruptions in the end."""
    from rich.console import Console
    from rich.progress import Progress

    from replay.tools.verify import Corruption

    console = Console(stderr=True)
    (groups, rows, size), corrupt = (0, 0, 0), 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title)
        for found in work:
            if isinstance(found, Corruption):
                corrupt += 1
                typer.echo(f"corrupt: {found}")
            else:
                groups, rows, size = found.groups, found.rows, found.size
                progress.update(task, total=found.total, completed=found.groups)
    return groups, rows, size, corrupt


def _show(columns: dict[str, dict]) -> None:
    """Prints counts as a table, a column for each."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *columns, box=None)
    names = dict.fromkeys(name for counts in columns.values() for name in counts)
    for name in names:
        values = [counts.get(name) for counts in columns.values()]
        table.add_row(name.replace("_", " "), *map(_text, values))
    Console().print(table)


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{reason} {count:,}" for reason, count in value.items()) or "0"
    if isinstance(value, list):
        return f"{len(value):,}"
    if value is None:
        return "-"
    return str(value) if isinstance(value, (str, bool)) else f"{value:,}"
