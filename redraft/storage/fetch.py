"""Fetching a run whose folder is not here: the newest copy that is whole, checked file by file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from learner.checkpoint import SKIPPED
from protocols.errors import FaultError, SettingError
from redraft import run as runs
from redraft.config import StorageSettings
from redraft.owner import Owner
from redraft.storage.copies import Manifest, numbers, object_name, read
from redraft.storage.snapshot import LEFT_OUT
from redraft.storage.store import Store, StoreError

log = logging.getLogger("redraft.storage")
GIB = 1 << 30


class DamagedError(Exception):
    """A copy lacks an object, or one is not what its manifest says."""


def fetch(settings: StorageSettings, name: str, tell: Callable[[str], None]) -> bool:
    """Makes runs/NAME of the newest whole copy in the store: whether there is one. Where the folder is there already,
    nothing is done. Raises SettingError where it does not fit here, FaultError where the store does not answer.

    What the lost folder may have published since is not known: the run goes on under version numbers well above.
    """
    folder = runs.RUNS / name
    if folder.exists():
        return False
    store = Store(settings, name)
    try:  # each object has storage.deadline_s
        return _fetch(store, folder, tell)
    except StoreError as error:
        raise FaultError(f"storage.url: {error}. Try again, raise storage.deadline_s, or name another place") from None


def _fetch(store: Store, folder: Path, tell: Callable[[str], None]) -> bool:
    found = [manifest for number in reversed(numbers(store)) if (manifest := read(store, number)) is not None]
    for manifest in found:
        tell(f"fetching {store.url}, as it was at step {manifest.step or 0}: {manifest.bytes / GIB:.2f} GiB")
        try:
            _write(store, manifest, folder)
            return True
        except DamagedError as error:
            log.warning("%s: copy %d is passed over: %s", store.url, manifest.number, error)
    if found:
        raise FaultError(f"{store.url}: none of its {len(found)} copies is whole; the log names what they lack")
    return False


def _write(store: Store, manifest: Manifest, folder: Path) -> None:
    owner = Owner(folder, "train")
    try:
        with owner.begin(None) as fresh:
            free = shutil.disk_usage(fresh).free
            if free < manifest.bytes:
                problem = f"{store.url} is {manifest.bytes / GIB:.2f} GiB, and {fresh.parent} has {free / GIB:.2f} free"
                raise SettingError("storage.url", problem, "Make room, or start in another folder")
            for name, (digest, size) in manifest.files.items():
                if name in LEFT_OUT:  # copies of before hold the lease of who made them
                    continue
                _get(store, fresh / name, digest, size)
            (fresh / "logs").mkdir(exist_ok=True)
            _skip_incarnations(fresh / "checkpoints" / "incarnation")
    finally:
        owner.release()


def _get(store: Store, path: Path, digest: str, size: int) -> None:
    from blake3 import blake3

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.get_file(object_name(digest), path)
    except FileNotFoundError:
        raise DamagedError(f"the object of {path.name} is missing") from None
    if path.stat().st_size != size or (
        size and blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest() != digest
    ):
        raise DamagedError(f"the object of {path.name} is damaged")


def _skip_incarnations(file: Path) -> None:
    """The number from which the next incarnation counts on."""
    if file.exists():
        file.write_text(str(int(file.read_text()) + SKIPPED))
