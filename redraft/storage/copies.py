"""A copy of a run in a store: complete, or not there.

    URL/NAME/copies/000007.json     a manifest: of which run, which step, and the object of each file; written last
    URL/NAME/objects/BLAKE3         the bytes of a file, under their digest: what has not changed is not written again

A manifest that is torn is no JSON and one whose objects are missing or damaged is passed over, so that a reader takes
the newest copy that is whole. Who begins to work on a run makes a copy at once, by which another machine that still
works on it sees that it was taken over: it copies no more. Nothing in a store locks: two that begin within the seconds
of one copy are not kept apart.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from protocols import strict_json
from protocols.errors import RedraftError, SettingError
from redraft import records
from redraft import run as runs
from redraft.config import StorageSettings
from redraft.run import Run
from redraft.storage.snapshot import Snapshot, taken
from redraft.storage.store import SETTING, Store, StoreError

log = logging.getLogger("redraft.storage")
SESSIONS = "storage.jsonl"
"""In the run folder: who has worked on it, a line each; a copy by another one is not of this folder's history."""
COPIES, OBJECTS = "copies", "objects"
FORMAT = 1
MANIFEST = re.compile(r"(\d{6,})\.json")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one copy says. `files` are [digest, bytes] by their paths in the run folder; `session` is who made it."""

    number: int
    run_id: str
    session: str
    step: int | None
    at: float
    files: Mapping[str, tuple[str, int]]
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files.values())

    @property
    def objects(self) -> set[str]:
        return {digest for digest, _ in self.files.values()}


def object_name(digest: str) -> str:
    return f"{OBJECTS}/{digest}"


def _manifest_name(number: int) -> str:
    return f"{COPIES}/{number:06d}.json"


def numbers(store: Store) -> list[int]:
    """Of the manifests in the store, whole or not, the newest last."""
    return sorted(int(found[1]) for name in store.sizes(COPIES) if (found := MANIFEST.fullmatch(name)))


def read(store: Store, number: int) -> Manifest | None:
    """None where that manifest is not whole, or not one of ours, or gone."""
    try:
        facts = json.loads(store.get(_manifest_name(number)))
        manifest = Manifest(
            **facts | {"files": {name: (digest, size) for name, (digest, size) in facts["files"].items()}}
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    sound = all(
        DIGEST.fullmatch(digest) and type(size) is int and _is_inside(name)
        for name, (digest, size) in manifest.files.items()
    )
    return manifest if sound and manifest.format == FORMAT and manifest.number == number else None


def newest(store: Store) -> Manifest | None:
    """The newest manifest that is whole; None where there is none."""
    return next((found for number in reversed(numbers(store)) if (found := read(store, number))), None)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."


class Copies:
    """Makes copies of a run whose folder this command owns; `keep` of them stay in the store.

    Raises SettingError where the store cannot be used here.
    """

    def __init__(self, run: Run, settings: StorageSettings, keep: int):
        self._run, self._settings, self._keep = run, settings, keep
        self._store = Store(settings, run.name)
        self._session = sessions(run)[-1]
        self._there: dict[str, int] | None = None  # objects in the store, with their bytes
        self._made: set[str] = set()  # objects that this one has written since the last copy
        self._swept = False
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}  # digests by size and time of files that may grow

    def copy(self) -> Manifest:
        """Copies what the run is now. Raises StoreError, or another RedraftError or OSError, where it cannot."""
        self._store.limit(self._settings.deadline_s)
        numbered = self._unless_taken_over()
        with taken(self._run, self._settings.deadline_s) as snapshot:
            files = self._objects(snapshot)
            step = snapshot.step
        if self._unless_taken_over() != numbered:
            raise RedraftError(f"another copy was made at {self._store.url} meanwhile")
        number = (numbered[-1] if numbered else 0) + 1
        manifest = Manifest(number, self._run.id, self._session, step, time.time(), files)
        self._store.put(_manifest_name(number), strict_json.dumps(asdict(manifest)).encode())
        self._forget([*numbered, number])
        return manifest

    def _unless_taken_over(self) -> list[int]:
        """The numbers of the copies that are there. Raises TakenOverError where the newest is not of this history."""
        found = numbers(self._store)
        last = newest(self._store) if found else None
        if last is not None and last.run_id == self._run.id and last.session not in sessions(self._run):
            raise TakenOverError(
                f"{self._store.url}: the run goes on elsewhere, from step {last.step}; no more is copied"
            )
        return found

    def _objects(self, snapshot: Snapshot) -> dict[str, tuple[str, int]]:
        """Writes the objects that are not there yet; returns digest and bytes of each file."""
        from blake3 import blake3

        if self._there is None:
            self._there = self._store.sizes(OBJECTS)
        files: dict[str, tuple[str, int]] = {}
        for name, path in snapshot.still.items():
            digest = snapshot.digests.get(name) or blake3().update_mmap(path).hexdigest()
            files[name] = digest, path.stat().st_size
            self._put(digest, files[name][1], path)
        for name, (path, size) in snapshot.growing.items():
            try:
                digest, size, data = self._grown(path, size)
            except FileNotFoundError:  # an old one that had to make room
                continue
            files[name] = digest, size
            if data is not None:
                self._put(digest, size, data)
        return files

    def _grown(self, path: Path, size: int) -> tuple[str, int, bytes | None]:
        """Digest and bytes of the first `size` bytes of a file, and these; None in their place where the store has
        them."""
        from blake3 import blake3

        stamp = size, path.stat().st_mtime_ns
        known = self._known.get(path)
        if known is not None and known[0] == stamp and self._has(known[1], size):
            return known[1], size, None
        with open(path, "rb") as file:
            data = file.read(size)
        digest = blake3(data).hexdigest()
        if len(data) == size:
            self._known[path] = stamp, digest
        return digest, len(data), data

    def _has(self, digest: str, size: int) -> bool:
        return (self._there or {}).get(digest) == size  # one that was torn is shorter

    def _put(self, digest: str, size: int, content: Path | bytes) -> None:
        if self._has(digest, size):
            return
        assert self._there is not None
        self._made.add(digest)
        if isinstance(content, Path):
            self._store.put_file(object_name(digest), content)
        else:
            self._store.put(object_name(digest), content)
        self._there[digest] = size

    def _forget(self, found: list[int]) -> None:
        """Removes all but the newest copies of this run, and the objects that none needs. Those of another run of its
        name stay: it was begun anew. Where that fails the copy is made all the same."""
        assert self._there is not None
        try:
            manifests = {number: read(self._store, number) for number in found}
            mine = [number for number, one in manifests.items() if one is None or one.run_id == self._run.id]
            old = mine[: -self._keep]
            kept = {digest for number, one in manifests.items() if one and number not in old for digest in one.objects}
            gone = {digest for number in old if (one := manifests[number]) for digest in one.objects}
            if not self._swept:  # what those have left who died within a copy
                gone |= self._there.keys()
            for number in old:
                self._store.remove(_manifest_name(number))
            for digest in sorted((gone | self._made) - kept):
                self._store.remove(object_name(digest))
                self._there.pop(digest, None)
            self._made, self._swept = set(), True
        except StoreError:
            self._there = None  # it is looked at anew


def check(run_folder: Path, settings: StorageSettings, resume: bool, again: bool) -> None:
    """Raises SettingError where the run in this folder, or a new one of its name, cannot be copied: the store cannot be
    written, or holds what this folder is not a later state of. A store that has taken copies of the run before and does
    not answer now is only told: it keeps no run from going on."""
    store = Store(settings, run_folder.name)
    proved = resume and records.at(records.recipe(run_folder), SETTING) == settings.url
    if not proved:
        store.probe()
    try:
        last = newest(store)
    except StoreError as error:
        if not proved:
            raise SettingError(SETTING, str(error), "Name a place that this user may read") from None
        log.warning("the run goes on, and may not be copied: %s", error)
        return
    if last is None or again:
        return
    if not resume:
        cure = "Add --resume to go on with it, --again to begin anew beside it, or choose another --run"
        raise SettingError("--run", f"{store.url} keeps a run of this name", cure)
    run = runs.find(str(run_folder))
    if last.run_id != run.id:
        raise SettingError(SETTING, f"{store.url} keeps another run of this name", "Name another place")
    if last.session not in sessions(run):
        problem = f"{store.url} has gone on elsewhere, to step {last.step}, from where {run_folder} is"
        raise SettingError("--resume", problem, f"Move {run_folder} away: then --resume fetches the copy")


class TakenOverError(RedraftError):
    """Another machine goes on with this run."""


def sessions(run: Run) -> list[str]:
    """Those who have worked on a run folder, the last one last."""
    return [str(line["session"]) for line in run.lines(SESSIONS) if "session" in line]


def begin(run: Run) -> None:
    """From now on this command is the one that works on the run."""
    run.append(SESSIONS, {"session": secrets.token_hex(8), "host": socket.gethostname(), "at": time.time()})
