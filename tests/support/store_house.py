"""Runs with checkpoints and spools that nobody trains, a store in a folder, and a store's client that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from learner import checkpoint
from redraft import run as runs
from redraft.config import StorageSettings
from redraft.run import Run
from redraft.storage import copies
from redraft.storage.copies import Copies
from support.spool_house import fill

RUN = "run"


def settings(folder: Path, **changes) -> StorageSettings:
    return StorageSettings(url=f"file://{folder}/bucket", **{"tries": 1, "deadline_s": 20} | changes)


def a_run(folder: Path, *steps: int, name: str = "r") -> Run:
    """One in folder/runs with a spool and these checkpoints, which a session has begun to work on."""
    where = folder / "runs" / name
    (where / "logs").mkdir(parents=True)
    (where / "run.json").write_text(json.dumps({"id": RUN, "model": "m"}))
    (where / "metrics.jsonl").write_text("")
    fill(where / "spool" / "0", RUN)
    run = runs.find(str(where))
    for step in steps:
        save(run, step)
    checkpoint.next_incarnation(run.folder)
    copies.begin(run)
    return run


def save(run: Run, step: int, weights: bytes = b"weights", keep: int = 2) -> None:
    """A checkpoint, and the line of its step."""
    folder = checkpoint.begin(run.folder, step)
    (folder / "engine").mkdir()
    (folder / "engine" / "weights").write_bytes(weights + bytes([step]) * 1000)
    (folder / "tokenizer.json").write_text("the same in each")
    checkpoint.finish(folder, checkpoint.RunState(run.id, step, 0, {"position": step}, 1, 0), keep)
    run.append("metrics.jsonl", {"step": step})


def files(folder: Path) -> dict[str, bytes]:
    """All that a run folder holds, but what is of one machine alone."""
    kept = ("lock", "readers", ".copying")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in kept and "lock" not in path.name
    }


class Rough:
    """A file system of fsspec whose methods do first what `plan` says: raise an error, or call something."""

    def __init__(self, fs):
        self._fs = fs
        self.plan: dict[str, list[Exception | Callable[..., None]]] = {}
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str):
        method = getattr(self._fs, name)

        def call(*arguments, **named):
            self.calls.append((name, str(arguments[-1] if name == "put_file" else arguments[0])))
            for first in [self.plan[name].pop(0)] if self.plan.get(name) else ():
                if isinstance(first, Exception):
                    raise first
                first(*arguments)
            return method(*arguments, **named)

        return call

    def written(self) -> list[str]:
        """Names of the objects that were written, in order."""
        return [path.rpartition("/")[2] for method, path in self.calls if method in ("pipe_file", "put_file")]


def rough(of: Copies) -> Rough:
    """Puts such a client in the place of that of a store."""
    of._store._fs = found = Rough(of._store._fs)
    return found
