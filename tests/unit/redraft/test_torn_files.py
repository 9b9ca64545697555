"""A run folder stays readable, and a run goes on, whatever half a line or odd number a death or an environment left."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.places import ROOT

from learner import checkpoint
from learner.transcripts import transcript
from protocols import strict_json
from protocols.errors import SettingError
from protocols.turns import Role, Turn
from redraft import records
from redraft.run import Run


def strict(text: str):
    """What a reader makes of it that takes JSON alone."""

    def refuse(constant: str):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("file", ["evaluations.jsonl", "metrics.jsonl"])
def test_lines_after_half_a_line_are_read_and_the_torn_one_is_told_once(tmp_path, file, caplog):
    run = Run(tmp_path, "id", "model")
    run.append(file, {"step": 0})
    with open(tmp_path / file, "ab") as stream:
        stream.write(b'{"step": 5, "reward')  # the writer died here
    assert [line["step"] for line in run.lines(file)] == [0] and not caplog.records, "it may be being written"
    run.append(file, {"step": 10})
    for _ in range(3):
        assert [line["step"] for line in records.lines(tmp_path / file)] == [0, 10]
    assert caplog.text.count("torn") == 1


def test_a_line_that_the_disk_took_in_two_parts_is_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    run = Run(tmp_path, "id", "model")
    run.append("metrics.jsonl", {"step": 1, "text": "some\u2028thing"})
    assert run.lines("metrics.jsonl") == [{"step": 1, "text": "some\u2028thing"}]


def turn(**facts) -> Turn:
    arrays: dict[str, Any] = {"prompt": np.array([1], np.int32), "response": np.array([2], np.int32)}
    given: dict[str, Any] = (
        {"logprobs": np.array([-1], np.float32), "versions": ((0, 0),), "role": Role.ATTEMPT} | arrays | facts
    )
    return Turn(bytes(16), 0, 0, -1, **given)


@pytest.mark.parametrize(
    "odd",
    [
        {"reward": math.nan},
        {"logprobs": np.array([-np.inf], np.float32)},
        {"extra": {"answer": math.nan, "success": False}},
        {"extra": {"score": math.inf}},
        {"extra": {"raw": b"x"}},
        {"extra": {"answer": "\ud800"}},
        {"extra": {1: 2}},
        {"timing": (math.nan, 0.0, 0.0)},
    ],
    ids=str,
)
def test_what_is_kept_of_a_turn_is_strict_json_whatever_an_environment_said(odd):
    said = turn(**odd)
    strict(transcript.line(transcript.head([said]), [transcript.told(said)]).decode())


def test_files_of_a_run_hold_null_where_a_figure_is_no_number(tmp_path):
    run = Run(tmp_path, "id", "model")
    run.append("metrics.jsonl", {"step": 1, "by_index": [0.5, math.nan], "most": math.inf})
    run.write("summary.json", {"reward": -math.inf})
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "by_index": [0.5, None], "most": None}
    assert strict((tmp_path / "summary.json").read_text()) == {"reward": None}
    assert strict_json.dumps({"a": 1.5}) == '{"a": 1.5}'


def written(run: Path, step: int, fails: bool = False) -> None:
    folder = checkpoint.begin(run, step)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"x" * 1000)
    if not fails:
        checkpoint.finish(folder, checkpoint.RunState("run", step, 3, {}, 1, 1), 2)


LOOSE = {
    *("redraft/owner.py", "redraft/lease_file.py", "learner/weights/publish.py"),  # texts and whole numbers alone
    *("redraft/diagnosis/evidence.py", "redraft/report/compare.py"),  # texts that are compared, and written nowhere
    *("redraft/run.py", "redraft/launch/serving.py"),  # words for people
}


def test_nothing_but_digests_and_messages_is_made_of_json_that_may_not_be_strict():
    """In files, in what commands print for other programs, and in answers over HTTP."""
    found = []
    for package in ("learner", "redraft"):
        for file in sorted((ROOT / package).rglob("*.py")):
            where, tree = str(file.relative_to(ROOT)), ast.parse(file.read_text())
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            fine = [one for call in calls if "hashlib" in ast.unparse(call.func) for one in ast.walk(call)]
            fine += [one for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for one in ast.walk(node)]
            loose = [
                call for call in calls if ast.unparse(call.func) in ("json.dumps", "json.dump") and call not in fine
            ]
            found += [f"{where}:{call.lineno}" for call in loose if where not in LOOSE]
    assert not found, "strict_json.dumps is what writes it"


def test_a_checkpoint_of_a_step_with_a_figure_that_is_no_number_is_strict_json(tmp_path):
    state = checkpoint.RunState("run", 1, 0, {}, 1, 1, report={"step": 1, "reward": float("nan")})
    with checkpoint.writing(tmp_path, "run", 1) as folder:
        made = checkpoint.finish(folder, state, keep=1)
    assert strict((made / "state.json").read_text())["report"] == {"step": 1, "reward": None}


def test_what_was_left_of_a_checkpoint_that_failed_is_removed_with_the_next_one(tmp_path):
    for step, fails in ((50, False), (100, True), (150, True), (200, False), (250, False)):
        written(tmp_path, step, fails)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000200", "step-000250"]


def test_what_a_full_disk_left_of_a_checkpoint_is_removed_at_once_and_with_a_resume_at_the_latest(tmp_path):
    with pytest.raises(OSError), checkpoint.writing(tmp_path, "run", 100) as folder:
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list((tmp_path / "checkpoints").iterdir())
    written(tmp_path, 150, fails=True)
    checkpoint.sweep(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_death_while_an_old_checkpoint_is_removed_leaves_none_that_looks_whole(tmp_path, monkeypatch):
    for step in (50, 100):
        written(tmp_path, step)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", lambda path, **_: path.exists() and dies())
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, 150)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-000100", "step-000150"]
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000100", "step-000150"]


def test_a_state_that_cannot_be_read_names_the_checkpoint_and_the_way_on(tmp_path):
    written(tmp_path, 50)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    (newest / "state.json").write_text("")
    with pytest.raises(SettingError, match=r"state\.json cannot be read.*checkpoint before"):
        checkpoint.read(newest, "run")


def test_an_incarnation_that_was_lost_is_never_one_that_has_been(tmp_path):
    written(tmp_path, 50)
    (tmp_path / "checkpoints" / "incarnation").write_text("")
    assert checkpoint.next_incarnation(tmp_path) > 3
    assert checkpoint.next_incarnation(tmp_path) > 4
