"""`redraft plan`: the arithmetic of memory as tables, or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocols import strict_json
from protocols.errors import SettingError
from redraft import run as runs
from redraft.launch.plan import GIB, RESERVE, Part, Plan, plan
from redraft.recipe import Recipe


def show(recipe: Recipe, config: Path | None, gpu_memory: float, as_json: bool, console: Console) -> bool:
    """Prints the plan; whether it fits. Raises SettingError where there is no config, or none that is known."""
    found = plan(recipe, _config(recipe, config), int(gpu_memory * GIB))
    if as_json:
        print(strict_json.dumps(found.to_json(), indent=1))
    else:
        _print(found, console)
    return found.fits


def _config(recipe: Recipe, given: Path | None) -> Any:
    """transformers' config of the recipe's model, without fetching or making one."""
    from redraft.models import sizes

    if given is not None:
        return sizes.config_at(given)
    model = recipe.model
    if model.make is not None:
        from redraft.models.make import config_of

        return config_of(model.make)[0]
    if model.path is None:
        cure = f"Fetch it with `redraft pretrained {model.pretrained} FOLDER`, and give --config FOLDER"
        raise SettingError("model.pretrained", "its config comes with its weights", cure)
    folder = Path(model.path).expanduser()
    return sizes.config_at(runs.find(str(folder)).model if (folder / "run.json").exists() else model.path)


def _print(found: Plan, console: Console) -> None:
    trained = "" if found.trained == found.parameters else f", {found.trained:,} of them are trained"
    gpus = f"{found.gpus} GPU{'s' * (found.gpus != 1)} of {found.gpu_bytes / GIB:.4g} GiB" if found.gpus else "no GPU"
    console.print(f"{found.model}: {found.parameters:,} parameters{trained}; {gpus}", highlight=False)
    for part in found.parts:
        console.print(_table(part))
        _tell(part, console)
    verdict = "It fits." if found.fits else "It does not fit."
    verdict = verdict if found.gpus else "No GPU is asked for, so there is no memory of one to fill."
    console.print(f"{verdict} Computed from the recipe and the model's config; nothing was measured.", style="bold")


def _table(part: Part) -> Table:
    place = f"on {part.gpus:g} GPU{'s' * (part.gpus > 1)} each" if part.gpus else "on the CPU"
    what = "rank" if part.name == "learner" else "process"
    many = f"{part.processes} {what}{'' if part.processes == 1 else 'es' if what == 'process' else 's'}"
    table = Table(title=f"{part.name}: {many}, {place}", title_justify="left", box=None, pad_edge=False)
    table.add_column("one GPU holds" if part.gpus else "one process holds", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("which is", style="dim", overflow="fold")
    for share in part.shares:
        table.add_row(share.what, f"{share.bytes / GIB:.2f}", share.how)
    kept = f", after {RESERVE:.0%} that nothing plans" if part.name == "learner" else ""
    room = "" if part.room is None else f"of {max(0, part.room) / GIB:.2f} GiB{kept}"
    table.add_row("together", f"{part.bytes / GIB:.2f}", room, style="bold" if part.fits else "bold red")
    return table


def _tell(part: Part, console: Console) -> None:
    for note in part.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    if not part.fits:
        console.print(f"does not fit: {part.problem}", style="red", highlight=False, markup=False)
        cure = "; or ".join(part.cures) if part.cures else "no setting alone: a smaller model, or larger GPUs"
        console.print(f"set {cure}" if part.cures else cure, highlight=False, markup=False)
    console.print()
