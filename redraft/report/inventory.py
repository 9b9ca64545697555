"""All runs of a folder in a table: of each its state, step, main figure, age and size, read without its bulk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from redraft import records
from redraft import run as runs
from redraft.owner import holder
from redraft.report import tables

READERS = 8  # threads: the wait is for the disk
TAIL_BYTES = 1 << 16  # of metrics.jsonl, in which the last line lies
BROKEN, RUNNING, CRASHED = "broken", "running", "crashed"
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What one folder says. `state` is running, broken with the `problem`, or how it ended; `figure` the newest
    evaluation's, "" where there is none. `began` is in seconds since 1970, `bytes` what it takes on the disk."""

    folder: str
    state: str
    step: int | None = None
    figure: str = ""
    began: float | None = None
    bytes: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        return Path(self.folder).name

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def read_all(folder: Path) -> list[Entry]:
    """Of every run folder in there, the newest first; what cannot be read is broken."""
    found = [path for path in _entries(folder) if path.is_dir() and not path.name.startswith(".")]
    with ThreadPoolExecutor(READERS) as pool:
        return sorted(pool.map(read, found), key=lambda entry: (-(entry.began or 0.0), entry.name))


def read(folder: Path) -> Entry:
    """Of one. It never raises."""
    taken = size(folder)
    try:
        facts = json.loads((folder / "run.json").read_text())
        began = datetime.fromisoformat(facts["began"]).timestamp() if facts.get("began") else None
        runs.Run(folder, **facts)  # or it could not be used
        return Entry(str(folder), _state(folder), _step(folder), _figure(folder), began, taken)
    except FileNotFoundError:
        problem = "it has no run.json"
    except Exception as error:  # whatever stands in files that are damaged
        problem = " ".join(str(error).split()) or type(error).__name__
    return Entry(str(folder), BROKEN, bytes=taken, problem=problem)


def table(entries: Sequence[Entry], now: float | None = None) -> Table:
    """For the terminal."""
    shown = Table(box=None, pad_edge=False)
    for title, justify in (("run", "left"), ("state", "left"), ("step", "right"), ("figure", "left"), ("age", "right")):
        shown.add_column(title, justify=justify, no_wrap=title in ("run", "age"))  # pyright: ignore[reportArgumentType]
    shown.add_column("size", justify="right", no_wrap=True)
    for entry in entries:
        state = f"{entry.state}: {entry.problem}" if entry.problem else entry.state
        step = "" if entry.step is None else f"{entry.step:,}"
        aged = "" if entry.began is None else age((time.time() if now is None else now) - entry.began)
        shown.add_row(entry.name, state, step, entry.figure, aged, megabytes(entry.bytes))
    return shown


def age(seconds: float) -> str:
    """ "3 d", in the largest unit of which there is one."""
    unit, name = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{max(seconds, 0) // unit:.0f} {name}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def size(folder: Path) -> int:
    """Bytes that its files take on the disk: a spool has holes, and a file of two names lies there once."""
    found: dict[tuple[int, int], int] = {}
    for entry in _files(folder):
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError:  # it has just been removed
            continue
        found[stat.st_dev, stat.st_ino] = 512 * stat.st_blocks
    return sum(found.values())


def _files(folder: Path | str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                else:
                    yield entry
    except OSError:
        return


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _state(folder: Path) -> str:
    if holder(folder) is not None:
        return RUNNING
    ended = records.ended(folder)
    return CRASHED if ended is None else ended.state


def _step(folder: Path) -> int | None:
    """The last that was done; of a run that has resumed from a checkpoint, since then."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return None
    with file.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - TAIL_BYTES))
        for line in reversed(lines.read().splitlines()):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):  # it is being written, or torn
                continue
    return None


def _figure(folder: Path) -> str:
    evaluations = records.evaluations(folder)
    line = evaluations.last or evaluations.first
    if line is None:
        return ""
    main = tables.main(line.summary)
    value = main.of(line.summary.sampled).value
    return f"{main.label}: no data" if value is None else f"{main.label}: {100 * value:.0f} %"
