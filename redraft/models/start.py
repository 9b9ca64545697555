"""The start model of a run, by its name and the digest of its bytes: each node finds, fetches or refuses it by itself.

A run folder may be moved, and a pod may mount the same things elsewhere; so a path says where to look first, and the
digest says whether it is the model. On a node one process looks at the bytes or fetches them, under a lock; the others
wait for it and read what it has noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from protocols import strict_json
from protocols.errors import DeadlineError, SettingError
from redraft.run import Start

log = logging.getLogger("redraft.models")
PARTS = re.compile(r"[^.].*\.(json|safetensors|bin|pt|pth|gguf|txt|model|jinja|py)")
"""The files of a folder that make a model and its tokenizer."""
LOCK_S = 3600.0
"""Longest wait for another process of this node that fetches or reads the same model."""
LOOK_S = 0.1


def find(start: Start, path: Path, prepare: Callable[[], Path], cache: Path, limit_s: float = LOCK_S) -> Path:
    """The folder of this very model on this node: `path` where it is there, else what `prepare` makes of its name.

    Raises SettingError where that is another model or none, DeadlineError where another process has held the lock for
    `limit_s`.
    """
    if (path / "config.json").exists() and digest(path, cache, limit_s) == start.digest:
        return path
    with locked(cache, start.digest, limit_s):
        found = prepare()
    check(start, found, digest(found, cache, limit_s))
    log.info("%s is at %s on this node", start.name, found)
    return found


def check(start: Start, path: Path, found: str) -> None:
    """Raises SettingError where the model in `path` is not the one that the run began with."""
    if found != start.digest:
        problem = f"{start.name} in {path} on {socket.gethostname()} is not the model that the run began with"
        cure = "Put that one there, or remove this one where it was fetched damaged; another model needs another --run"
        raise SettingError("model", f"{problem}: digest {found[:12]}, not {start.digest[:12]}", cure)


def digest(model: Path, cache: Path, limit_s: float = LOCK_S) -> str:
    """The blake3 of the model's files with their names. It is noted in `cache`, and read anew when a file changes."""
    key = hashlib.blake2b(str(model.resolve()).encode(), digest_size=10).hexdigest()
    note = cache / "digests" / f"{key}.json"
    if (known := _noted(note, model)) is not None:
        return known
    with locked(cache, key, limit_s):
        if (known := _noted(note, model)) is not None:
            return known
        stamps, found = _stamps(model), _read(model)
        with contextlib.suppress(OSError):  # a cache that cannot be written is one that does not help
            note.parent.mkdir(parents=True, exist_ok=True)
            aside = note.with_name(f".{key}.{os.getpid()}")
            aside.write_text(strict_json.dumps({"files": stamps, "digest": found}))
            aside.rename(note)
    return found


@contextlib.contextmanager
def locked(cache: Path, key: str, limit_s: float = LOCK_S) -> Iterator[None]:
    """One process of this node at a time. Raises DeadlineError. Where the cache cannot be written nobody is kept out:
    nothing is fetched there either."""
    try:
        folder = cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        _lock(lock, key, limit_s)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, key: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DeadlineError("a process", f"another one that fetches or reads model {key}", limit_s) from None
            time.sleep(LOOK_S)


def _files(model: Path) -> list[Path]:
    return sorted(file for file in model.iterdir() if file.is_file() and PARTS.fullmatch(file.name))


def _stamps(model: Path) -> dict[str, list[int]]:
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in _files(model)}


def _noted(note: Path, model: Path) -> str | None:
    try:
        said = json.loads(note.read_text())
        return str(said["digest"]) if said["files"] == _stamps(model) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(model: Path) -> str:
    from blake3 import blake3

    whole = blake3()
    for file in _files(model):
        each = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
        whole.update(f"{file.name}\0{each}\n".encode())
    return whole.hexdigest()
