"""A power cut, played: builds power_cut.c, reads its journal, and rebuilds what a disk may hold after the cut.

The model is that of a page cache: a write changes the cached page; a sync makes the pages written before it began
durable; a write through an O_DSYNC descriptor is durable when it returns. At the cut each page that was not synced is,
independently, as it was on disk, as it was in the cache, as at any moment between, or torn between two of these at a
sector's edge. A file's name is taken to be durable once the file is written.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.waiting import deadline_s

PAGE, SECTOR = 4096, 512
HEAD = struct.Struct("<cBHIQQ")
SOURCE = Path(__file__).resolve().parent / "power_cut.c"
IGNORED = ("lock.mdb", "service.lock")  # mean nothing after a restart of the machine


def shim(folder: Path) -> Path:
    """The compiled library. Its tests bear the marker `compiler`."""
    library = folder / "power_cut.so"
    if not library.exists():
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-lpthread"]
        subprocess.run(command, check=True, timeout=deadline_s(60))
    return library


def environment(library: Path, spool: Path, journal: Path, full: Path | None = None, sync_us: int = 0) -> dict:
    """For a service whose spool is `spool`, which must exist."""
    found = {"LD_PRELOAD": str(library), "POWER_FOLDER": str(spool), "POWER_JOURNAL": str(journal)}
    return found | {"POWER_SYNC_US": str(sync_us)} | ({"POWER_FULL": str(full)} if full else {})


@dataclass(slots=True)
class Entry:
    """One thing that was done to the spool. `end` is where it ends in the journal."""

    kind: str
    durable: bool
    name: str
    offset: int
    size: int
    data: bytes
    end: int


def entries(journal: Path) -> Iterator[Entry]:
    """The entries of a journal; what a kill cut short is left out."""
    raw, at = journal.read_bytes(), 0
    while at + HEAD.size <= len(raw):
        kind, durable, named, _, offset, size = HEAD.unpack_from(raw, at)
        start = at + HEAD.size + named
        end = start + (size if kind == b"W" else 0)
        if end > len(raw):
            return
        name = raw[at + HEAD.size : start].decode()
        if name not in IGNORED:
            assert kind != b"M", f"{name} is written through a memory map, which this harness cannot see"
            yield Entry(kind.decode(), bool(durable), name, offset, size, raw[start:end], end)
        at = end


@dataclass
class File:
    """Pages on disk, and for each page written since its last sync what it was in the cache, oldest first."""

    disk: dict[int, bytes] = field(default_factory=dict)
    cache: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)

    def write(self, moment: int, offset: int, data: bytes) -> list[int]:
        touched = range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)
        for page in touched:
            at = page * PAGE
            old = self.cache[page][-1][1] if page in self.cache else self.disk.get(page, bytes(PAGE))
            first, last = max(offset - at, 0), min(offset + len(data) - at, PAGE)
            new = old[:first] + data[at + first - offset : at + last - offset] + old[last:]
            self.cache.setdefault(page, []).append((moment, new))
        return list(touched)

    def truncate(self, size: int) -> None:
        """Taken to be durable at once: LMDB does not shrink files."""
        for pages in (self.disk, self.cache):
            for page in [page for page in pages if page * PAGE >= size]:
                del pages[page]

    def sync(self, pages: list[int], before: int) -> None:
        """The last write of each page that came before the moment `before` is on disk."""
        for page in pages:
            durable = [content for moment, content in self.cache[page] if moment < before]
            if durable:
                self.disk[page] = durable[-1]
                self.cache[page] = [version for version in self.cache[page] if version[0] >= before]
            if not self.cache[page]:
                del self.cache[page]

    def after_cut(self, generator: random.Random, spared: float) -> dict[int, bytes]:
        """The pages after a cut that spares this share of what was not synced."""
        pages = dict(self.disk)
        for page, versions in self.cache.items():
            if generator.random() < spared:
                old, new = pages.get(page, bytes(PAGE)), generator.choice(versions)[1]
                torn = generator.randrange(0, PAGE, SECTOR) if generator.random() < 0.3 else PAGE
                pages[page] = new[:torn] + old[torn:]
        return pages


class Disk:
    """The disk below a spool, as the entries of a journal change it one after the other."""

    def __init__(self):
        self.files: dict[str, File] = {}
        self._begun: dict[tuple[str, int], int] = {}
        self._moment = 0

    def apply(self, entry: Entry) -> None:
        self._moment += 1
        file = self.files.setdefault(entry.name, File())
        if entry.kind == "W":
            touched = file.write(self._moment, entry.offset, entry.data)
            if entry.durable:
                file.sync(touched, self._moment + 1)
        elif entry.kind == "T":
            file.truncate(entry.size)
        elif entry.kind == "B":
            self._begun[entry.name, entry.offset] = self._moment
        elif entry.kind == "E":
            file.sync(list(file.cache), self._begun.pop((entry.name, entry.offset)))

    def cut(self, folder: Path, seed: int) -> None:
        """Writes to `folder` what is there when the power comes back. Odd seeds spare nothing that was not synced."""
        generator = random.Random(seed)
        spared = generator.random() if seed % 2 == 0 else 0.0
        folder.mkdir(parents=True)
        for name, file in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as out:
                for page, content in sorted(file.after_cut(generator, spared).items()):
                    out.seek(page * PAGE)
                    out.write(content)
