"""An object store, as fsspec reaches it: every call has a deadline and is tried again, and fails with one error."""

from __future__ import annotations

import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from protocols.errors import FaultError, SettingError, in_a_line
from redraft.config import StorageSettings

SETTING = "storage.url"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PROBE_S = 60.0
"""Longest wait, before a run starts, for a store to take a few bytes and give them back."""
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Values of variables that are as short say nothing, and may be anywhere in a text."""
T = TypeVar("T")


class StoreError(FaultError):
    """The store did not do what it was asked, after all tries; one line, which holds no secret of the environment."""


class Store:
    """The place of one run in a store: names are relative to it, with "/" between their parts.

    Raises SettingError where the URL's protocol cannot be used here. Methods raise StoreError.
    """

    def __init__(self, settings: StorageSettings, name: str):
        self.url = f"{settings.url}/{name}"
        self._settings, self._until = settings, float("inf")
        self._fs, self._root = _filesystem(self.url)

    def limit(self, limit_s: float) -> None:
        """All calls from now on have to end within so long together."""
        self._until = time.monotonic() + limit_s

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects in a folder, by their names in it, with their bytes; none where it is not there."""

        def look() -> dict[str, int]:
            try:
                found = self._fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            return {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}

        return self._try(look, f"list {folder}")

    def put(self, name: str, data: bytes) -> None:
        self._try(lambda: self._fs.pipe_file(self._at(name), data), f"write {name}")

    def put_file(self, name: str, path: Path) -> None:
        self._try(lambda: self._fs.put_file(str(path), self._at(name)), f"write {name}")

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such object."""
        return self._try(lambda: self._fs.cat_file(self._at(name)), f"read {name}", FileNotFoundError)

    def get_file(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError where there is no such object."""
        self._try(lambda: self._fs.get_file(self._at(name), str(path)), f"read {name}", FileNotFoundError)

    def remove(self, name: str) -> None:
        """One that is gone already is no error."""

        def remove() -> None:
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                pass

        self._try(remove, f"remove {name}")

    def probe(self) -> None:
        """Raises SettingError, in one line, where this place cannot be written, read and cleared."""
        name, data = f"probe-{secrets.token_hex(4)}", secrets.token_bytes(16)
        self.limit(PROBE_S)
        try:
            self.put(name, data)
            same = self.get(name) == data
            self.remove(name)
        except (StoreError, FileNotFoundError) as error:
            cure = "Name a place that this user may write, with its keys in the environment (AWS_ACCESS_KEY_ID, say)"
            raise SettingError(SETTING, str(error), cure) from None
        if not same:
            raise SettingError(SETTING, f"{self.url} gives back other bytes than it was given", "Name another place")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _try(self, call: Callable[[], T], what: str, *expected: type[Exception]) -> T:
        """What the call returns, tried as often as the settings say. `expected` errors are the caller's."""
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(self._settings.tries)):
            try:
                return within(min(self._settings.deadline_s, self._until - time.monotonic()), call)
            except expected:
                raise
            except Exception as error:  # each store's client raises kinds of its own
                late = time.monotonic() + pause_s >= self._until
                if not left or late or isinstance(error, FileNotFoundError | PermissionError | TimeoutError):
                    raise StoreError(f"cannot {what} at {self.url}: {said(error)}") from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("there is at least one try")


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.utils import get_protocol

    protocol = get_protocol(url)
    how = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        return url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **how)
    except ImportError as error:
        package = "redraft[s3]" if protocol in ("s3", "s3a") else f"what fsspec needs for {protocol}"
        raise SettingError(SETTING, f"{protocol}:// cannot be used here: {said(error)}", f"Install {package}") from None
    except Exception as error:  # of the store's client, or an unknown protocol
        raise SettingError(SETTING, f"{url} cannot be used: {said(error)}", "Name another place") from None


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises TimeoutError where it does neither in time; it is then left behind, in a
    thread that keeps no process from ending."""
    answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))

    if limit_s > 0:
        threading.Thread(target=run, name="storage", daemon=True).start()
    try:
        ok, found = answer.get(timeout=limit_s) if limit_s > 0 else answer.get_nowait()
    except queue.Empty:
        raise TimeoutError(f"no answer within {max(0.0, limit_s):.0f} s") from None
    if not ok:
        raise found
    return found


def said(error: BaseException) -> str:
    """An error in one line, without the secrets of this process's environment."""
    text = in_a_line(error)
    secret = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST_SECRET]
    for value in sorted(secret, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
