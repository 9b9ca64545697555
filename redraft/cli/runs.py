"""`redraft runs`: the runs in runs/, and which of them to remove."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from protocols import strict_json
from protocols.errors import SettingError

if TYPE_CHECKING:
    from redraft.report.inventory import Entry

app = typer.Typer(help="The runs in runs/: state, step, main figure, age, size.", invoke_without_command=True)
console = Console()
DAY_S = 86400.0


@app.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known.")] = False,
) -> None:
    """The runs in runs/: state, step, main figure, age, size. Folders that cannot be read are shown as broken."""
    if context.invoked_subcommand is not None:
        return
    from redraft.report import inventory
    from redraft.run import RUNS

    found = inventory.read_all(RUNS)
    if as_json:
        print(strict_json.dumps([entry.to_json() for entry in found], indent=1))
    elif found:
        console.print(inventory.table(found))
    else:
        console.print(f"no runs in {RUNS.absolute()}", soft_wrap=True)


@app.command()
def prune(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Names under runs/.")] = None,
    older: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            help="All that have ended and began so long ago, but those with a best checkpoint.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove run folders for good. Never one that goes on or is read, nor one that another run stands on."""
    from redraft import prune as pruning
    from redraft.report import inventory
    from redraft.run import RUNS

    known = {entry.name: entry for entry in inventory.read_all(RUNS)}
    chosen = [_named(name, known) for name in dict.fromkeys(names or ())]
    if older is not None:
        ended = [entry for entry in known.values() if entry.state not in (inventory.RUNNING, inventory.BROKEN)]
        old = [entry for entry in ended if time.time() - (entry.began or time.time()) >= older * DAY_S]
        chosen += [entry for entry in old if entry not in chosen and not _spared(entry)]
    elif not names:
        raise SettingError("RUN", "no run is named", "Name some, or give --older DAYS")
    if not chosen:
        return console.print("there is nothing to remove")
    pruning.check([Path(entry.folder) for entry in chosen], [RUNS / name for name in known])
    if not yes:
        console.print(inventory.table(chosen))
        if not sys.stdin.isatty():
            raise SettingError("--yes", "nobody can be asked here", "Give it, to remove these for good")
        typer.confirm(f"Remove {len(chosen)} runs for good?", abort=True)
    for entry in chosen:
        pruning.remove(Path(entry.folder))
        console.print(f"removed {entry.folder}, {inventory.megabytes(entry.bytes)}", soft_wrap=True)


def _spared(entry: Entry) -> bool:
    """Whether a run keeps a best checkpoint, as its recipe asks for; who is to remove that one has to name the run."""
    from learner import checkpoint

    if (best := checkpoint.best(entry.folder)) is None:
        return False
    console.print(
        f"{entry.name} stays: it keeps its best checkpoint, {best.name}; name it to remove it", soft_wrap=True
    )
    return True


def _named(name: str, known: Mapping[str, Entry]) -> Entry:
    if name not in known:
        raise SettingError("RUN", f"there is no run {name!r} in runs/", f"Known: {', '.join(sorted(known)) or 'none'}")
    return known[name]
