"""Checkpoints: everything a run resumes from, written aside and renamed, so that one is whole or not there.

checkpoints/step-000100/state.json     the run's identity, step, incarnation, controller's cursor, how it was sharded
                        model/         a folder that transformers and vLLM load
                        adapter/       in its place where an adapter is trained: a folder that PEFT loads
                        engine/        weights that are trained and optimizer, a file a rank: see ranks/shards.py
                        published.safetensors  amid a round: the weights that actors play with, where they are others
                        random-0.pt    random state of each rank
                        digests.json   blake3 of every file, by which damage is found before anything is loaded
checkpoints/kept.json                         steps whose checkpoints stay beside the newest: the best, one evaluated
checkpoints/incarnation                       the newest incarnation: no later one publishes its version numbers again
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protocols import run_folder, strict_json
from protocols.errors import RedraftError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"step-(\d{6,})")
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|index\.json)")
TAG = "engine"
MODEL, ADAPTER = "model", "adapter"
PUBLISHED = "published.safetensors"
DIGESTS = "digests.json"
KEPT = "kept.json"
SKIPPED = 1000  # incarnations, where the newest is not known: more than a run has between two checkpoints
log = logging.getLogger("redraft.checkpoint")


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint says of the run. `cursor` is how far the controller is in its tasks: JSON values only.

    `published` is the step whose weights were the last to be published (None: those of `step`). `report` is the
    learner's of the step, for a controller that was gone before it could be told. `bound` is what the staleness bound
    goes on from, empty where the recipe says it. `ranks`, `zero` and `offload` say who wrote it; others may go on with
    it.
    """

    run_id: str
    step: int
    incarnation: int
    cursor: dict
    ranks: int
    zero: int
    published: int | None = None
    offload: str = "none"
    report: dict = field(default_factory=dict)
    bound: dict = field(default_factory=dict)


def newest(run_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, None when there is none."""
    found = _finished(run_dir)
    return found[-1] if found else None


def best(run_dir: str | Path) -> Path | None:
    """The checkpoint that has solved most, where a run keeps it (`learner.keep_best`); None before any."""
    folder = _named(run_dir, _kept(run_dir).get("best"))
    return folder if folder is not None and folder.exists() else None


def mark(run_dir: str | Path, best: int | None, evaluated: int | None) -> None:
    """From now on these steps' checkpoints are not removed for newer ones: the `best`, and one that is `evaluated`
    now. Without either none is kept but the newest."""
    file = Path(run_dir, "checkpoints", KEPT)
    if best is None and evaluated is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{KEPT}.tmp")
    aside.write_text(strict_json.dumps({"best": best, "evaluated": evaluated}))
    aside.rename(file)


def _kept(run_dir: str | Path) -> dict[str, int | None]:
    try:
        found = json.loads(Path(run_dir, "checkpoints", KEPT).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(run_dir: str | Path, step: int | None) -> Path | None:
    return None if step is None else Path(run_dir, "checkpoints", f"step-{step:06d}")


def _finished(run_dir: str | Path) -> list[Path]:
    folders = [path for path in Path(run_dir, "checkpoints").glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def steps(run_dir: str | Path) -> list[int]:
    """The steps of which a run has a whole checkpoint, rising."""
    return [step_of(folder) for folder in _finished(run_dir)]


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(folder.name.removeprefix("step-"))


def begin(run_dir: str | Path, step: int) -> Path:
    """An empty folder for the checkpoint of `step`, under a name that no reader takes for a finished one. What was left
    of others that were never finished is removed."""
    folder = Path(run_dir, "checkpoints", f".step-{step:06d}.tmp")
    sweep(run_dir)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def writing(run_dir: Path, run_id: str, step: int) -> Iterator[Path]:
    """Such a folder to fill and `finish`. Where that fails it is removed at once: it may have filled the disk."""
    run_folder.check(run_dir, run_id)
    folder = begin(run_dir, step)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def sweep(run_dir: str | Path) -> None:
    """Removes what was left of checkpoints that a full disk or a death has kept from being written, or removed."""
    for left in Path(run_dir, "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def write_model(folder: Path, model_path: str | Path, config, state: dict[str, Tensor]) -> None:
    """The model of a checkpoint that is being written in `folder`."""
    write_folder(folder / MODEL, model_path, config, state)


def write_folder(target: Path, model_path: str | Path, config, state: dict[str, Tensor]) -> None:
    """Makes `target` a Hugging Face folder: these weights, this config, the tokenizer's files of the start model.
    Others may read it."""
    from safetensors.torch import save_file

    target.mkdir(exist_ok=True)
    for file in Path(model_path).iterdir():
        if file.is_file() and not WEIGHTS.fullmatch(file.name):
            shutil.copy(file, target / file.name)
    config.save_pretrained(target)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors keeps others out


def _remove(folder: Path) -> None:
    """Under another name, so that a death amid it leaves no half of a checkpoint that looks whole."""
    gone = folder.with_name(f".{folder.name}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def finish(folder: Path, state: RunState, keep: int) -> Path:
    """Makes the checkpoint durable under its own name, and removes all but the `keep` newest and the marked ones.
    Raises SettingError where the run folder is another run's by now."""
    run_folder.check(folder.parents[1], state.run_id)
    (folder / "state.json").write_text(strict_json.dumps(asdict(state), indent=2))
    found = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / DIGESTS).write_text(strict_json.dumps(found, indent=2))
    for path in sorted(folder.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(folder)
    target = folder.with_name(f"step-{state.step:06d}")
    if target.exists():
        _remove(target)
    folder.rename(target)
    _fsync(target.parent)
    stay = _kept(target.parent.parent).values()
    for old in _finished(target.parent.parent)[:-keep]:
        if step_of(old) not in stay:
            _remove(old)
    return target


def size(folder: Path) -> int:
    """Bytes of a checkpoint."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(folder: Path) -> None:
    """Raises RedraftError naming the first file of a checkpoint that is not as it was written."""
    for name, digest in digests(folder).items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            what = "is damaged" if path.is_file() else "is missing"
            raise RedraftError(f"{path} {what}. {_cure(folder)}")


def _cure(folder: Path) -> str:
    """The cure, and what it costs: replay forgot what the newest checkpoint had covered."""
    return f"Remove {folder}, to resume from the checkpoint before it; what was trained since is not played again"


def digests(folder: Path) -> dict[str, str]:
    """The blake3 of each file of a checkpoint, by its place in it. Raises RedraftError where they cannot be read."""
    try:
        return json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError) as error:
        problem = f"{folder / DIGESTS} cannot be read ({error}), without which no damage would be seen"
        raise RedraftError(f"{problem}. {_cure(folder)}") from error


def _digest(path: Path) -> str:
    from blake3 import blake3

    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def read(folder: Path, run_id: str) -> RunState:
    """The state of a checkpoint. Raises SettingError when it is another run's."""
    try:
        state = RunState(**json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        problem = f"{folder / 'state.json'} cannot be read: {error}"
        raise SettingError("name", problem, _cure(folder)) from error
    if state.run_id != run_id:
        raise SettingError("name", f"{folder} belongs to run {state.run_id}, not {run_id}", "Choose another run folder")
    return state


def next_incarnation(run_dir: str | Path) -> int:
    """The number of the incarnation that starts now, 0 the first time; remembered before anything is published in it.

    It is kept apart from the checkpoints: an incarnation that ended without one has still used its version numbers.
    """
    file = Path(run_dir, "checkpoints", "incarnation")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        incarnation = int(file.read_text()) + 1 if file.exists() else 0
    except ValueError:
        incarnation = max(map(_incarnation_of, _finished(run_dir)), default=0) + SKIPPED
        log.warning("%s holds no number; the run goes on as its incarnation %d", file, incarnation)
    fresh = file.with_name(".incarnation.tmp")
    fresh.write_text(str(incarnation))
    _fsync(fresh)
    fresh.rename(file)
    _fsync(file.parent)
    return incarnation


def _incarnation_of(folder: Path) -> int:
    try:
        return int(json.loads((folder / "state.json").read_text())["incarnation"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
