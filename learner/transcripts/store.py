"""The store of transcripts: a sample of the groups of each step, kept in the run folder for people to read.

turns/000000.jsonl, 000001.jsonl ...   segments of training; the oldest go when `record.max_bytes` is reached
      before-000000.jsonl              an evaluation: its label, its step

Replay forgets groups after a checkpoint; this does not. It serves reading only, and must never stop a run: what cannot
be written is counted, logged once, and left out. An incarnation begins a segment of its own, so that a line which a
killed learner left half written spoils no other; lines of steps that a later one played again are the reader's to drop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from learner.config import RecordSettings
from learner.sequences import Linearised, Shares
from learner.transcripts import transcript
from protocols import metrics
from protocols.turns import Group, Role, Turn

log = logging.getLogger("redraft.learner")
FOLDER = "turns"
TRAINING = "training"
SEGMENTS = "[0-9]" * 6 + ".jsonl"
SHARE = 16  # a segment is full with this part of `max_bytes`,
SEGMENT_BYTES = 16 << 20  # or with this: a reader takes one at a time
TESTS = 64  # tasks of an evaluation that are kept


def picks(groups: Sequence[Group], count: int, step: int) -> dict[int, str]:
    """Which of a batch's groups are kept, at most `count`, by their index, and why: "error" or "stride".

    Up to half are groups with a turn of role error, which are rare and worth a look. Those of "stride" are a fair
    sample: taken at a fixed stride from all, whatever happened in them, beginning one group later at each step.
    """
    total, count = len(groups), min(count, len(groups))
    failed = [index for index, group in enumerate(groups) if any(turn.role is Role.ERROR for turn in group.turns)]
    errors = failed[: count // 2]
    wanted = count - len(errors)
    fair = [(step + number * total // wanted) % total for number in range(wanted)]
    return dict(sorted((dict.fromkeys(errors, "error") | dict.fromkeys(fair, "stride")).items()))


def sample(
    groups: Sequence[Group],
    advantages: Sequence[np.ndarray],
    lines: Linearised,
    shares: Sequence[Shares],
    count: int,
    step: int,
) -> list[tuple[dict, list[dict]]]:
    """Heads and turns of the groups of a batch that are kept, as `transcript.line` takes them.

    The weight of a token is its share of the batch's loss over the mean share of trained tokens: 1 is the average.
    """
    kept = picks(groups, count, step) if count else {}
    weights = _token_weights(kept, lines, shares)
    return [
        (
            {"group": groups[index].id.hex(), "task": str(groups[index].extra.get("task", "")), "picked": why}
            | transcript.head(groups[index].turns),
            [
                transcript.told(turn, advantages[index][turn.turn], weights.get((index, turn.turn)))
                for turn in groups[index].turns
            ],
        )
        for index, why in kept.items()
    ]


def _token_weights(
    kept: Mapping[int, str], lines: Linearised, shares: Sequence[Shares]
) -> dict[tuple[int, int], np.ndarray]:
    """The weights of response tokens, float32[R], by (index of the group, turn)."""
    trained = sum(int(np.count_nonzero(share.loss)) for share in shares)
    mean = sum(float(share.loss.sum()) for share in shares) / max(1, trained)
    found: dict[tuple[int, int], np.ndarray] = {}
    for sequence, index, share in zip(lines.sequences, lines.groups, shares, strict=True):
        if index not in kept:
            continue
        for number in np.unique(sequence.turns[share.loss > 0]):
            turn, values = lines.turns[number], share.loss[sequence.turns == number] / mean
            found[index, turn.turn] = np.zeros(len(turn.response), np.float32)
            found[index, turn.turn][: len(values)] = values  # a sequence may be cut within its last turn
    return found


class Segment:
    """A file that lines are added to. A disk that is full may leave a part of one: no later line goes on from it."""

    def __init__(self, path: Path):
        self._path, self.size, self._partial = path, 0, False

    def append(self, data: bytes) -> None:
        """Adds whole lines. Raises OSError."""
        if self._partial:  # what is there of that line becomes a line of its own, which no reader takes
            data = b"\n" + data
        self._partial = True
        with open(self._path, "ab") as file:
            file.write(data)
        self._partial = False
        self.size += len(data)


class TranscriptStore:
    """Writes the segments of one incarnation of a run."""

    def __init__(self, run_dir: Path, settings: RecordSettings):
        self._folder, self._limit = run_dir / FOLDER, settings.max_bytes
        self._full = min(settings.max_bytes // SHARE, SEGMENT_BYTES)
        self._segment: Segment | None = None  # until there is something to write
        self._said = False

    def write(self, step: int, version: int, kept: Sequence[tuple[dict, list[dict]]]) -> None:
        """Adds what `sample` chose of `step`, which published or will publish as `version`."""
        if not kept:
            return
        facts = {"step": step, "version": version, "label": TRAINING}
        try:
            self._append(b"".join(transcript.line(facts | head, turns) for head, turns in kept))
        except OSError as error:
            metrics.RECORD_FAILURES.inc()
            if not self._said:
                log.warning("turns of step %d are not kept for `redraft view`: %s; this is logged once", step, error)
            self._said = True

    def _append(self, data: bytes) -> None:
        if self._segment is None or self._segment.size + len(data) > self._full:
            self._segment = self._begin(len(data))
        self._segment.append(data)

    def _begin(self, size: int) -> Segment:
        """A new segment with room for `size` bytes; the oldest make room for a whole one."""
        self._folder.mkdir(exist_ok=True)
        segments = sorted(self._folder.glob(SEGMENTS))
        number = int(segments[-1].stem) + 1 if segments else 0
        held = [path.stat().st_size for path in segments]
        while segments and sum(held) + max(size, self._full) > self._limit:
            segments.pop(0).unlink()
            held.pop(0)
        return Segment(self._folder / f"{number:06d}.jsonl")


def write_evaluation(run_dir: Path, facts: dict, tasks: Sequence[dict], played: Sequence[Sequence[Turn]]) -> None:
    """Keeps tasks of an evaluation at a fixed stride, the same ones each time; `facts` are its label, step, version."""
    stride = -(-len(tasks) // TESTS)
    lines = [
        transcript.line(
            facts | {"group": "", "task": str(task.get("id", "")), "picked": "stride"} | transcript.head(turns),
            [transcript.told(turn) for turn in turns],
        )
        for task, turns in list(zip(tasks, played, strict=True))[::stride]
    ]
    path = run_dir / FOLDER / f"{facts['label']}-{facts['step']:06d}.jsonl"
    aside = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        aside.write_bytes(b"".join(lines))
        aside.rename(path)
    except OSError as error:
        log.warning("turns of the evaluation %s are not kept for `redraft view`: %s", facts["label"], error)
