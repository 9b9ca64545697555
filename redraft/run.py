"""A run is a folder: it can be copied and read later, while it is written and afterwards."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from protocols import own_code, run_folder, strict_json
from protocols.errors import SettingError
from redraft import files, machine, records
from redraft.owner import Owner, shared
from redraft.recipe import Recipe, load
from redraft.records import json_object

log = logging.getLogger("redraft.run")
RUNS = Path("runs")
MODEL = "model"
"""In a run folder: the start model, where it was made for the run, or is another run's that may prune it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MAY_CHANGE = {  # on resume
    *("name", "steps", "sampled_tokens", "start_s", "stop_s"),
    *("actors", "evaluation", "metrics", "logs", "tracking", "storage"),
}
MAY_CHANGE_WITHIN = {  # which change nothing about what is learnt, but how sums round
    "replay": {"claim_lease_s", "max_bytes", "durability", "curve", "shards", "services", "keys"},
    "model": {"path"},  # where it is; its digest says whether it is the same
    "learner": {
        *("claim_deadline_s", "checkpoint_every", "keep_checkpoints", "keep_best", "record"),
        *("ranks", "standby", "restarts", "zero", "offload"),  # who works
        *("cpus", "gpus", "resources", "threads"),  # and on what
        *("micro_tokens", "logprob_chunk", "gradient_checkpointing"),  # in what pieces
    },
}


@dataclass(frozen=True, slots=True)
class Start:
    """The start model of a run: `name` is what the recipe calls it, `revision` the Hub's of what was fetched by that
    name, else "", `digest` that of its files."""

    name: str
    revision: str
    digest: str


UNKNOWN = Start("", "", "")
"""Of a run that has noted none."""


@dataclass(frozen=True, slots=True)
class Run:
    """The folder and the identity of a run. `id` stays the same over resumes and renames of the folder."""

    folder: Path
    id: str
    model: str
    """Where the start model is on the machine of the command; see `start`."""
    ray: str = ""
    cluster: bool = False
    """Of the address `ray`: whether it was there before the run, so that nodes may join."""
    sd: str = ""
    """Where Prometheus finds the processes of the run, while it goes on."""
    began: str = ""
    """When it was started first, in ISO 8601 with the offset from UTC."""
    version: str = ""
    """Redraft's, then."""
    machine: str = ""
    """That of the command, then."""
    start: Start = UNKNOWN
    """Which model that is, wherever it lies."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def spool(self, shard: int) -> Path:
        return self.folder / "spool" / str(shard)

    @property
    def shards(self) -> int:
        """How many shards of replay have stored in this folder."""
        return len(list((self.folder / "spool").glob("*")))

    @property
    def keys(self) -> Path:
        """Of the replay service, where it listens beyond this machine."""
        return self.folder / "keys"

    def check(self) -> None:
        """Raises SettingError where the folder is another run's by now."""
        run_folder.check(self.folder, self.id)

    def append(self, file: str, line: Mapping[str, Any]) -> None:
        """Adds one JSON line to `file` in the folder. It begins a new line where an earlier writer died within one.
        Raises OSError where the disk does not take all of it, SettingError where the folder is another run's."""
        self.check()
        data = (strict_json.dumps(line) + "\n").encode()
        descriptor = os.open(self.folder / file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def lines(self, file: str) -> list[dict]:
        """The whole lines of `file`; none when it does not exist. One that is torn is left out."""
        return records.lines(self.folder / file)

    def write(self, file: str, content: Mapping[str, Any]) -> None:
        """Replaces `file` by this JSON, whole or not at all. Raises SettingError where the folder is another run's."""
        self.replace(file, strict_json.dumps(content, indent=1) + "\n")

    def replace(self, file: str, text: str) -> None:
        """Replaces `file` by this text, whole or not at all: a full disk, or a death, leaves what was there. Raises
        SettingError where the folder is another run's."""
        self.check()
        aside = self.folder / f".{file}.tmp"
        aside.write_text(text)
        aside.rename(self.folder / file)

    def save(self) -> None:
        self.write("run.json", {key: value for key, value in asdict(self).items() if key != "folder"})


@contextlib.contextmanager
def owned(recipe: Recipe, name: str | None, resume: bool, again: bool, command: str = "train") -> Iterator[Owner]:
    """While it lasts, the folder of that run is this command's. Raises SettingError where `create` would, or where
    another command has it, before anything is written."""
    check(recipe, name, resume, again)
    _check_writable()
    owner = Owner(RUNS / (name or recipe.name), command)
    try:
        if owner.folder.exists():
            owner.take(to_rename=again)
            check(recipe, name, resume, again)  # who had it may have gone on until just now
        yield owner
    finally:
        owner.release()


def _check_writable() -> None:
    """Raises SettingError where no run folder can be made, before work is done that would have none."""
    folder = RUNS.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = f"{folder} cannot be written, and a run keeps its folder in {RUNS.absolute()}"
        raise SettingError("--run", problem, "Run the command in a folder that you may write to")


def create(
    recipe: Recipe,
    model: str,
    owner: Owner,
    resume: bool = False,
    again: bool = False,
    identity: str | None = None,
    start: Start = UNKNOWN,
) -> Run:
    """The folder of a new run, or of the one to resume. Raises SettingError when that cannot be.

    With `again` an older run of that name is kept under another one, with the time it began. A new run has the
    `identity` given, if any, and begins with the model `start`, which is in the folder `model`. One that was made goes
    into the run folder: another machine would not make the same. So does that of another run, which may be pruned.
    """
    folder = owner.folder
    check(recipe, folder.name, resume, again)
    own = own_code.read(recipe.model_dump(mode="json"))
    if resume:
        before = code(folder, recipe)
        if changed := [path for path, source in own.items() if before.get(path, source) != source]:
            log.warning("%s is not what the run began with; it goes on with what it is now", ", ".join(changed))
        own_code.keep(own, folder)
        run = find(str(folder))
        run.replace("recipe.yaml", recipe.dump())
        (folder / "summary.json").unlink(missing_ok=True)  # of how it ended before
        return run if (folder / MODEL).exists() else replace(run, model=str(Path(model).resolve()))
    with owner.begin(_free(folder) if again else None) as fresh:
        (fresh / "logs").mkdir()
        (fresh / "recipe.yaml").write_text(recipe.dump())
        own_code.keep(own, fresh)
        run = Run(
            fresh,
            identity or secrets.token_hex(16),
            str(Path(model).resolve()),
            began=datetime.now().astimezone().isoformat(timespec="seconds"),
            version=importlib.metadata.version("redraft"),
            machine=machine.described(),
            start=start,
        )
        run.save()
        if start != UNKNOWN and (recipe.model.make is not None or in_a_run(recipe.model.path)):
            files.link_folder(Path(model), fresh / MODEL)
    return find(str(folder.resolve()))


def in_a_run(path: str | None) -> Path | None:
    """The run folder that this is or lies in; None where it is in none."""
    if path is None:
        return None
    place = Path(path).expanduser().resolve()
    return next((folder for folder in (place, *place.parents) if (folder / "run.json").is_file()), None)


def code(folder: Path, recipe: Recipe) -> dict[str, str]:
    """The sources of the user's own parts as a run folder keeps them; of what it does not keep, as they are."""
    values = recipe.model_dump(mode="json")
    return own_code.read(values) | own_code.kept(values, folder)


def newest_step(folder: Path) -> int | None:
    """The step of a run's newest checkpoint; None when it has none."""
    from learner import checkpoint

    found = checkpoint.newest(folder)
    return None if found is None else checkpoint.step_of(found)


def identity(name: str) -> str:
    """The id of the run in runs/NAME; "" where there is none."""
    try:
        return json.loads((RUNS / name / "run.json").read_text())["id"]
    except (OSError, ValueError, KeyError):
        return ""


def begun(name: str) -> bool:
    """Whether runs/NAME is a run, in whatever state."""
    return (RUNS / name / "run.json").exists()


def done(name: str, recipe: Recipe) -> bool:
    """Whether the run runs/NAME has done the recipe's steps, or has ended early as the recipe asks for, and has its
    evaluation after them."""
    folder = RUNS / name
    summary = json_object(folder / "summary.json")
    if summary.get("state") != "done":
        return False
    before = load(folder / "recipe.yaml")
    same = (before.evaluation.stop, before.sampled_tokens) == (recipe.evaluation.stop, recipe.sampled_tokens)
    return bool(summary.get("early") and same) or (newest_step(folder) or 0) >= recipe.steps


def failed_at_start(name: str) -> bool:
    """Whether the run runs/NAME failed before its first step, so that there is nothing in it to go on with."""
    folder = RUNS / name
    ended = json_object(folder / "summary.json")
    failed = ended.get("state") == "failed" and not ended.get("try_again")
    return failed and not records.lines(folder / "metrics.jsonl") and newest_step(folder) is None


def check(recipe: Recipe, name: str | None, resume: bool, again: bool) -> None:
    """Raises SettingError when `create` would, before any work is done for it."""
    if name is not None and not NAME.fullmatch(name):
        raise SettingError("--run", f"{name!r} cannot name a folder", "Use letters, digits, dots, dashes, underscores")
    folder = RUNS / (name or recipe.name)
    if resume:
        _can_go_on(find(str(folder)), recipe)
    elif folder.exists() and not again:
        cure = "Add --resume to go on with it, --again to keep it under another name, or choose another --run"
        raise SettingError("--run", f"{folder} exists", cure)


def _can_go_on(run: Run, recipe: Recipe) -> None:
    """Refuses to resume what is done, or with settings that the run's past does not have."""
    before = load(run.folder / "recipe.yaml")
    for key in (key for key in Recipe.model_fields if key not in MAY_CHANGE):
        if (found := _difference(key, _fixed(before, key).get(key), _fixed(recipe, key).get(key))) is not None:
            setting, was, now = found
            limits = [f"{part}.{name}" for part, names in MAY_CHANGE_WITHIN.items() for name in sorted(names)]
            allowed = ", ".join([*sorted(MAY_CHANGE), *limits])
            cure = f"On resume {allowed} may change; for more start a new run, with another --run"
            raise SettingError(setting, f"{_worded(now)}, but the run {run.name} began with {_worded(was)}", cure)
    steps = newest_step(run.folder) or 0
    ended = done(run.name, recipe)
    if ended and steps < recipe.steps:
        problem = f"the run {run.name} has ended early, after {steps} steps"
        spent = "sampled_tokens" in json_object(run.folder / "summary.json").get("early", "")
        setting = "sampled_tokens" if spent else "evaluation.stop"
        raise SettingError(setting, problem, f"Set {setting}=null, or another one, to go on")
    if steps > recipe.steps or ended:
        raise SettingError("steps", f"the run {run.name} has done {steps} of {recipe.steps}", "Set steps=N to go on")


def _difference(key: str, was: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first setting beneath `key` whose values differ, by its dotted name, with both."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        inner = (_difference(f"{key}.{name}", was[name], now[name]) for name in was)
        return next((found for found in inner if found is not None), None)
    return None if was == now else (key, was, now)


def _worded(value: Any) -> str:
    """A setting's value as a recipe would have it."""
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def _fixed(recipe: Recipe, key: str) -> dict:
    """What a resume may not change about a part of the recipe."""
    return recipe.model_dump(include={key}, exclude={key: MAY_CHANGE_WITHIN.get(key, set())})


def find(name: str) -> Run:
    """The run in runs/NAME or in the folder NAME. Raises SettingError when there is none."""
    for folder in (Path(name), RUNS / name):
        if (folder / "run.json").exists():
            facts = json.loads((folder / "run.json").read_text())
            if "start" in facts:
                facts["start"] = Start(**facts["start"])
            if (folder / MODEL).exists():
                facts["model"] = str(folder.resolve() / MODEL)
            return Run(folder.resolve(), **facts)
    known = sorted(path.parent.name for path in RUNS.glob("*/run.json"))
    raise SettingError("RUN", f"there is no run {name!r}", f"Known: {', '.join(known) or 'none yet'}")


@contextlib.contextmanager
def reading(name: str) -> Iterator[Run]:
    """Yields the run as `find` does; while it lasts, its folder keeps its name."""
    with shared(find(name).folder):
        yield find(name)


def checkpoint_at(run: Run, step: int | None, best: bool = False) -> Path:
    """The folder of a run's newest checkpoint, of that of `step`, or of the `best`. Raises SettingError when there is
    none."""
    from learner import checkpoint

    if best:
        if step is not None:
            raise SettingError("--best", "--best and --step exclude each other", "Give one of them")
        found = checkpoint.best(run.folder)
        if found is None:
            cure = "Train with evaluation.every and learner.keep_best=true, or name one with --step"
            raise SettingError("--best", f"{run.name} keeps no best checkpoint", cure)
        return found
    found = checkpoint.newest(run.folder) if step is None else run.checkpoints / f"step-{step:06d}"
    if found is None or not found.exists():
        known = ", ".join(str(checkpoint.step_of(path)) for path in sorted(run.checkpoints.glob("step-*"))) or "none"
        raise SettingError("--step", f"{run.name} has no such checkpoint", f"Steps with one: {known}")
    return found


def _free(folder: Path) -> Path:
    """A name beside `folder` for the run that is in it: the time at which it began."""
    began = (folder / "recipe.yaml").stat().st_mtime if (folder / "recipe.yaml").exists() else time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    names = [f"{folder.name}-{stamp}"] + [f"{folder.name}-{stamp}-{n}" for n in range(2, 100)]
    return next(path for path in (folder.with_name(name) for name in names) if not path.exists())
