"""A run is a folder: it can be copied and read later, while it is written and afterwards."""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from protocols.errors import SettingError
from redraft.recipe import Recipe, load

RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class Run:
    """The folder and the identity of a run. `id` stays the same over resumes and renames of the folder."""

    folder: Path
    id: str
    model: str
    ray: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def append(self, file: str, line: dict) -> None:
        """Adds one JSON line to `file` in the folder, in one write."""
        data = (json.dumps(line) + "\n").encode()
        descriptor = os.open(self.folder / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def lines(self, file: str) -> list[dict]:
        """The whole lines of `file`; none when it does not exist."""
        path = self.folder / file
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1] if line]

    def write(self, file: str, content: dict) -> None:
        """Replaces `file` by this JSON, whole or not at all."""
        aside = self.folder / f".{file}.tmp"
        aside.write_text(json.dumps(content, indent=1) + "\n")
        aside.rename(self.folder / file)

    def save(self) -> None:
        self.write("run.json", {key: value for key, value in asdict(self).items() if key != "folder"})


def create(recipe: Recipe, model: str, name: str | None, resume: bool, again: bool = False) -> Run:
    """The folder of a new run, or of the one to resume. Raises SettingError when that cannot be.

    With `again` an older run of that name is kept under another one, with the time it began.
    """
    check(recipe, name, resume, again)
    folder = RUNS / (name or recipe.name)
    if resume:
        (folder / "recipe.yaml").write_text(recipe.dump())
        return find(str(folder))
    if folder.exists():
        folder.rename(_free(folder))
    folder.mkdir(parents=True)
    (folder / "logs").mkdir()
    run = Run(folder.resolve(), secrets.token_hex(16), str(Path(model).resolve()))
    (folder / "recipe.yaml").write_text(recipe.dump())
    run.save()
    return run


def check(recipe: Recipe, name: str | None, resume: bool, again: bool) -> None:
    """Raises SettingError when `create` would, before any work is done for it."""
    folder = RUNS / (name or recipe.name)
    if resume:
        find(str(folder))
        _same_history(load(folder / "recipe.yaml"), recipe)
    elif folder.exists() and not again:
        raise SettingError("--run", f"{folder} exists", "Add --resume to go on with it, or choose another name")


def _same_history(before: Recipe, now: Recipe) -> None:
    """Refuses to go on with another seed, model or environment: the run's past would not be that of its recipe."""
    for key in ("seed", "model", "environment"):
        if getattr(before, key) != getattr(now, key):
            problem = f"the run began with {getattr(before, key)}, the recipe says {getattr(now, key)}"
            raise SettingError(key, problem, "Start a new run for that, with another --run")


def find(name: str) -> Run:
    """The run in runs/NAME or in the folder NAME. Raises SettingError when there is none."""
    for folder in (Path(name), RUNS / name):
        if (folder / "run.json").exists():
            facts = json.loads((folder / "run.json").read_text())
            return Run(folder.resolve(), facts["id"], facts["model"], facts.get("ray", ""))
    known = sorted(path.parent.name for path in RUNS.glob("*/run.json"))
    raise SettingError("RUN", f"there is no run {name!r}", f"Known: {', '.join(known) or 'none yet'}")


def _free(folder: Path) -> Path:
    """A name beside `folder` for the run that is in it: the time at which it began."""
    began = (folder / "recipe.yaml").stat().st_mtime if (folder / "recipe.yaml").exists() else time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    names = [f"{folder.name}-{stamp}"] + [f"{folder.name}-{stamp}-{n}" for n in range(2, 100)]
    return next(path for path in (folder.with_name(name) for name in names) if not path.exists())
