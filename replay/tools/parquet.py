"""Groups as Parquet: one row a turn, the turns of a group together and in order.

    group                      the group's id in hex
    lease, order               of the play that was kept: its fencing token, and the order of its lease
    state, uses                at the time of the export: used, ready, ...; the steps that used it
    turns, spread              of the group: how many turns; largest minus smallest reward of the attempts it compares
    turn .. truncated          as in protocols.turns.Turn, rewards final: those of the close row are in them
    queue_s .. environment_s   seconds
    extra                      of the turn, a msgpack map
    close_extra                of the group, a msgpack map: in the row of turn 0, null in the others

The file's metadata name the run ("redraft.run") and the schema of its turns ("redraft.schema"); without groups nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import lmdb
import msgpack
import pyarrow as pa
import pyarrow.parquet as pq

from protocols.errors import RedraftError, SettingError
from protocols.keys import GROUP_BYTES
from protocols.turns import Close, Role, Stop, Turn
from protocols.wire import ENTRY, SCHEMA, Packed, Row, row_of, whole_group
from replay.config import ReplaySettings
from replay.disk.spool import read_row
from replay.server.groups import PLAYED, Draft, State
from replay.server.store import Store
from replay.tools.standalone import usable
from replay.tools.verify import Corruption, Progress, Whole, going_on, read_chosen

TOKENS = ("prompt", "response", "logprobs")
SAME = ("turn", "parent", "after", "index", "episode", *TOKENS, "reward", "terminated", "truncated")  # as in a Turn
TIMING = ("queue_s", "generation_s", "environment_s")
COLUMNS = pa.schema(
    {
        "group": pa.string(),
        "lease": pa.int32(),
        "order": pa.int64(),
        "state": pa.string(),
        "uses": pa.list_(pa.int32()),
        "turns": pa.int32(),
        "spread": pa.float32(),
        "turn": pa.int32(),
        "parent": pa.int32(),
        "after": pa.int32(),
        "index": pa.int32(),
        "episode": pa.int32(),
        "role": pa.string(),
        "stop": pa.string(),
        "prompt": pa.list_(pa.int32()),
        "response": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "versions": pa.list_(pa.struct({"start": pa.int32(), "version": pa.int64()})),
        "reward": pa.float64(),
        "terminated": pa.bool_(),
        "truncated": pa.bool_(),
        **dict.fromkeys(TIMING, pa.float64()),
        "extra": pa.binary(),
        "close_extra": pa.binary(),
    }
)
CLOSED = tuple(state.name.lower() for state in State if state not in PLAYED)
ROW_GROUP_BYTES, ROW_GROUP_TURNS = 32 << 20, 8192  # one is written when it has so much
BATCH_TURNS = 256  # read at once


def export(
    folders: Sequence[Path], run_id: str | None, out: Path, states: Collection[str]
) -> Iterator[Progress | Corruption]:
    """Writes the groups in these states to the new file `out`, which appears when it is whole.

    Yields how far it is, a Corruption for each group that is left out, and last a Progress that counts what was
    written. Raises SettingError when the file cannot be written or the spools cannot be read.
    """
    if unknown := set(states) - set(CLOSED):
        problem = f"{min(unknown)!r} is not a state of a closed group"
        raise SettingError("--state", problem, f"Choose from {', '.join(CLOSED)}")
    if out.exists():
        raise SettingError("OUT", f"{out} exists", "Choose another name, or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        options = {"compression": "zstd", "write_page_checksum": True}
        with partial.open("wb") as file, pq.ParquetWriter(file, COLUMNS, **options) as writer:
            yield from _write(_Sink(writer), folders, run_id, states)
        partial.rename(out)
    except OSError as error:
        raise SettingError("OUT", f"{out} cannot be written: {error}", "Choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def _write(
    sink: _Sink, folders: Sequence[Path], run_id: str | None, states: Collection[str]
) -> Iterator[Progress | Corruption]:
    written = Progress(folders[-1])
    for folder in folders:
        for found in going_on(read_chosen, Progress(folder), run_id, states):
            if not isinstance(found, Whole):
                yield found
                continue
            try:
                sink.add(found)
                written = written.past(found.stored)
            except (pa.ArrowException, ValueError, TypeError, LookupError, OverflowError) as error:
                group = found.stored[0][0][:GROUP_BYTES]
                yield Corruption(folder, group, f"it cannot be written as a table: {error}", found.held)
    sink.flush()
    yield written


class _Sink:
    """Collects groups into Parquet row groups of bounded size, so that memory is bounded, too."""

    def __init__(self, writer: pq.ParquetWriter):
        self._writer, self._waiting, self._turns, self._size, self._run = writer, [], 0, 0, ""

    def add(self, group: Whole) -> None:
        """Raises what pyarrow and Python raise on values that do not fit the columns."""
        table = _table(group)
        if group.run != self._run:
            self._run = group.run
            self._writer.add_key_value_metadata({"redraft.run": group.run, "redraft.schema": str(SCHEMA)})
        self._waiting.append(table)
        self._turns, self._size = self._turns + table.num_rows, self._size + table.nbytes
        if self._turns >= ROW_GROUP_TURNS or self._size >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
        self._waiting, self._turns, self._size = [], 0, 0


def _table(found: Whole) -> pa.RecordBatch:
    held, rows = found.held, [read_row(*row) for row in found.stored]
    group = whole_group(row for row in rows if row is not None)
    columns = {name: [getattr(turn, name) for turn in group.turns] for name in SAME}
    columns |= {name: [turn.timing[n] for turn in group.turns] for n, name in enumerate(TIMING)}
    columns |= {
        "role": [turn.role.name.lower() for turn in group.turns],
        "stop": [turn.stop.name.lower() for turn in group.turns],
        "versions": [[{"start": start, "version": v} for start, v in turn.versions] for turn in group.turns],
        "extra": [msgpack.packb(turn.extra) for turn in group.turns],
        "close_extra": [msgpack.packb(group.extra)] + [None] * (len(group.turns) - 1),
    }
    of_group = {
        "group": group.id.hex(),
        "lease": held.lease,
        "order": held.order,
        "state": held.state.name.lower(),
        "uses": held.uses,
        "turns": held.turns,
        "spread": held.spread,
    }
    columns |= {name: [value] * len(group.turns) for name, value in of_group.items()}
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in COLUMNS], schema=COLUMNS)


def load(file: Path, folder: Path, run_id: str) -> Iterator[str | Corruption]:
    """Stores the groups of an exported file, ready to be served, in the spool of `run_id` in `folder`.

    The spool is made if there is none. Each group is stored whole or not at all. Yields for it "stored", "duplicate"
    (it is closed there already) or "fenced" (it is open there, under a higher fencing token), or a Corruption when it
    is not whole. Raises SettingError when the file or the folder cannot be used.
    """
    with _opened(file) as table:
        with usable(folder):
            store = Store(folder, run_id, ReplaySettings())
        try:
            for name, turns in groupby(_turns(table), key=lambda turn: turn["group"]):
                yield _load(store, file, name, list(turns))
        except lmdb.DiskError as error:
            raise RedraftError(f"{folder}: {error}. What was imported is kept; make room and import again") from None
        finally:
            store.close()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Raises SettingError when it is not an export, or is found corrupt while it is read."""
    cure = "Name a file that `redraft replay export` wrote"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := [name for name in COLUMNS.names if name not in file.schema_arrow.names]:
                raise SettingError("FILE", f"{path} lacks the columns {', '.join(missing)}", cure)
            yield file
    except (OSError, pa.ArrowException) as error:
        raise SettingError("FILE", f"{path} cannot be read: {error}", cure) from None


def _turns(file: pq.ParquetFile) -> Iterator[dict]:
    """The rows by column name, tokens and log-probs as arrays."""
    for batch in file.iter_batches(BATCH_TURNS):
        table = pa.Table.from_batches([batch]).select(COLUMNS.names).cast(COLUMNS)
        arrays = [{name: table[name][n].values for name in TOKENS} for n in range(table.num_rows)]  # None for null
        for plain, tokens in zip(table.drop_columns(list(TOKENS)).to_pylist(), arrays, strict=True):
            yield plain | tokens


def _load(store: Store, file: Path, name: str, turns: list[dict]) -> str | Corruption:
    try:
        rows = _rows(bytes.fromhex(name), sorted(turns, key=lambda turn: turn["turn"]))
    except Exception as error:  # a file may hold anything
        return Corruption(file, b"", f"group {name}: {error}")
    return _store(store, rows) or Corruption(file, b"", f"group {name}: the spool has other rows of the same play")


def _rows(group: bytes, turns: list[dict]) -> list[tuple[Row, Packed]]:
    """The rows of a whole group. Raises ValueError when turns are missing, and what else corrupt values cause."""
    if len(group) != GROUP_BYTES:
        raise ValueError(f"its id must have {GROUP_BYTES} bytes, got {len(group)}")
    first = turns[0]
    lease, order, spread = first["lease"], first["order"], first["spread"]
    if [turn["turn"] for turn in turns] != list(range(first["turns"])):
        raise ValueError(f"it should have {first['turns']} turns, and has the turns {[turn['turn'] for turn in turns]}")
    if lease < 0 or order < 0:
        raise ValueError(f"lease and order must be at least 0, got {lease} and {order}")
    packed = [row_of(_turn(group, lease, turn), order) for turn in turns]
    packed.append(row_of(Close(group, lease, len(turns), {}, _facts(first["close_extra"])), order, spread))
    rows = [(Row._make(ENTRY.unpack(entry)), (entry, record)) for entry, record in packed]
    whole_group(rows)
    return rows


def _turn(group: bytes, lease: int, values: dict) -> Turn:
    tokens = {name: values[name].to_numpy() for name in ("prompt", "response")}
    logprobs = values["logprobs"].to_numpy(zero_copy_only=False)  # what wrote the file may have made null of NaN
    return Turn(
        group=group,
        lease=lease,
        **{name: values[name] for name in SAME} | tokens | {"logprobs": logprobs},
        role=Role[values["role"].upper()],
        stop=Stop[values["stop"].upper()],
        versions=tuple((stretch["start"], stretch["version"]) for stretch in values["versions"]),
        timing=tuple(values[name] for name in TIMING),
        extra=_facts(values["extra"]),
    )


def _facts(packed: bytes | None) -> dict:
    return msgpack.unpackb(packed, use_list=False, strict_map_key=False) if packed else {}


class _Mixed(Exception):
    pass


def _store(store: Store, rows: list[tuple[Row, Packed]]) -> str:
    """Stores a whole group in one transaction; returns its outcome, "" where other rows of its play are there."""

    def work(draft: Draft) -> str:
        outcomes = {draft.store(row, packed) for row, packed in rows}
        held = draft.held(rows[0][0].group)
        if "stored" in outcomes and held.state in PLAYED:
            raise _Mixed
        return next(outcome for outcome in ("stored", "fenced", "duplicate") if outcome in outcomes)

    while True:
        try:
            return store.change(work)
        except _Mixed:
            return ""
        except lmdb.MapFullError:  # a large group may need more than one growth
            store.spool.grow()
