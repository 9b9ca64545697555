"""Where the rows of `rows` come from: JSON lines, JSON, Parquet, a folder of these, or the Hugging Face hub.

A row is a map of columns, with the place that errors name. Values are what JSON has; bytes, such as images, are left
out. `data.test`, or files (a hub's splits) called train and test, divide the rows; where nothing does, the caller has
to.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, cast

from actors.config import DataSettings
from actors.environments.files import numbered
from protocols.errors import SettingError

KINDS = (".jsonl", ".json", ".parquet")
SPLITS = {"train": ("train",), "test": ("test", "validation")}
CURE = f"Name a file ({', '.join(KINDS)}), a folder with train and test files, or a hub name"
BIGGEST = 2**63 - 1


class Placed(NamedTuple):
    """A row, and where it is: file and line."""

    where: str
    row: dict[str, Any]


def read(data: DataSettings, split: str) -> tuple[list[Placed], bool]:
    """The rows of a split, or all rows and True where nothing says which are for testing. Raises SettingError."""
    if data.path is None:
        raise SettingError("data.path", "rows has no questions of its own", CURE)
    if data.test is not None and split == "test":
        return _whole(Path(data.test), "data.test"), False
    path = Path(data.path)
    if path.is_dir():
        files, divided = _files(path, split, data.test is not None)
        return [row for file in files for row in _whole(file, "data.path")], not divided
    if path.exists() or path.suffix in KINDS or data.path.startswith((".", "/", "~")):
        return _whole(path, "data.path"), data.test is None
    return _hub(data, split)


def _files(folder: Path, split: str, tested_apart: bool) -> tuple[list[Path], bool]:
    """The files of a folder that hold a split, and whether they hold nothing else."""
    known = sorted(file for file in folder.iterdir() if file.suffix in KINDS and not file.name.startswith("."))
    if not known:
        raise SettingError("data.path", f"{folder} holds no {', no '.join(KINDS)}", CURE)
    of = {name: [file for file in known if _is_of(file, name)] for names in SPLITS.values() for name in names}
    if tested_apart:
        return of["train"] or known, True
    if not (of["test"] or of["validation"]):
        return of["train"] or known, False
    found = next((of[name] for name in SPLITS[split] if of[name]), [])
    return found, True


def _is_of(file: Path, split: str) -> bool:
    """train.jsonl, and train-00000-of-00002.parquet."""
    return file.stem == split or file.stem.startswith((f"{split}-", f"{split}_"))


def _whole(file: Path, setting: str) -> list[Placed]:
    try:
        return [Placed(where, _row(where, row, setting)) for where, row in _raw(file)]
    except (OSError, ValueError) as error:
        raise SettingError(setting, f"{file} cannot be read: {error}", CURE) from None


def _raw(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1):
            yield f"{file.name} row {number}", row
    elif file.suffix == ".json" and file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        for number, row in enumerate(json.loads(file.read_text(encoding="utf-8-sig")), 1):
            yield f"{file.name} row {number}", row
    elif file.suffix in KINDS:
        for number, row in numbered(file):
            yield f"{file.name} line {number}", row
    else:
        raise ValueError(f"{file.suffix or 'a file without ending'} is not known")


def _hub(data: DataSettings, split: str) -> tuple[list[Placed], bool]:
    path = str(data.path)
    try:
        from datasets import Dataset, get_dataset_split_names, load_dataset

        names = get_dataset_split_names(path, data.config)
        wanted = next((name for name in SPLITS[split] if name in names), None)
        divided = data.test is not None or any(name in names for name in SPLITS["test"])
        if not divided:
            wanted = "train" if "train" in names else names[0]
        rows: list = []
        if wanted is not None:
            rows = cast(Dataset, load_dataset(path, data.config, split=wanted)).to_list()
    except Exception as error:  # the hub's client raises many kinds; every one means that the data is not there
        problem = f"{path!r} is no file here, and the hub says {type(error).__name__}: {error}"
        raise SettingError("data.path", " ".join(problem.split()), CURE) from error
    places = ((f"{path} {wanted} row {number}", row) for number, row in enumerate(rows, 1))
    return [Placed(where, _row(where, row, "data.path")) for where, row in places], not divided


class _LeftOut(Exception):
    """A value that no text can hold."""


def _row(where: str, row: Any, setting: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SettingError(setting, f"{where} is no map of columns", CURE)
    found = {}
    for column, value in row.items():
        try:
            found[str(column)] = _plain(value)
        except _LeftOut:
            continue
        except ValueError as error:
            raise SettingError(setting, f"{where}, column {column!r} {error}", "Correct it") from None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a character, which cannot be written as UTF-8") from None
        return value
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if abs(value) > BIGGEST:
            raise ValueError("holds a number of more than 64 bits; write it as a text")
        return value
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    raise _LeftOut
