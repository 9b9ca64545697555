"""Checkpoints: one is whole or not there, old ones go, and version numbers never repeat."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config

from learner.checkpoint import RunState, begin, best, check, finish, mark, newest, next_incarnation, read, write_model
from protocols.errors import RedraftError, SettingError


def write(run_dir, step: int, keep: int = 2):
    return finish(begin(run_dir, step), RunState("run", step, 0, {"task": step}, ranks=2, zero=3), keep)


def test_there_is_none_at_first(tmp_path):
    assert newest(tmp_path) is None


def test_the_newest_finished_one_is_found_and_only_the_newest_are_kept(tmp_path):
    for step in (9, 10, 1_000_000):
        path = write(tmp_path, step)
    assert newest(tmp_path) == path == tmp_path / "checkpoints" / "step-1000000"
    assert sorted(folder.name for folder in path.parent.iterdir()) == ["step-000010", "step-1000000"]


def steps_there(run_dir) -> list[str]:
    return sorted(folder.name for folder in (run_dir / "checkpoints").glob("step-*"))


def test_the_best_and_the_one_that_is_evaluated_stay_beside_the_newest_as_long_as_they_are_marked(tmp_path):
    for step in (1, 2):
        write(tmp_path, step, keep=1)
        mark(tmp_path, best=None, evaluated=step)
    assert steps_there(tmp_path) == ["step-000001", "step-000002"], "each was marked when the next one came"
    mark(tmp_path, best=1, evaluated=2)
    write(tmp_path, 3, keep=1)
    assert steps_there(tmp_path) == ["step-000001", "step-000002", "step-000003"]
    assert best(tmp_path).name == "step-000001"
    mark(tmp_path, best=3, evaluated=None)
    write(tmp_path, 4, keep=1)
    assert steps_there(tmp_path) == ["step-000003", "step-000004"] and newest(tmp_path).name == "step-000004"
    mark(tmp_path, best=None, evaluated=None)
    write(tmp_path, 5, keep=1)
    assert steps_there(tmp_path) == ["step-000005"] and best(tmp_path) is None


def test_one_that_was_not_finished_is_not_seen_and_can_be_begun_again(tmp_path):
    write(tmp_path, 1)
    (begin(tmp_path, 2) / "half").touch()
    assert newest(tmp_path).name == "step-000001"
    assert not list(begin(tmp_path, 2).iterdir())


def test_a_state_reads_back_as_it_was(tmp_path):
    assert read(write(tmp_path, 3), "run") == RunState("run", 3, 0, {"task": 3}, 2, 3)


def test_one_of_another_run_is_refused(tmp_path):
    with pytest.raises(SettingError, match="belongs to run run"):
        read(write(tmp_path, 3), "other")


def test_a_file_that_is_not_as_it_was_written_is_named_with_the_cure(tmp_path):
    folder = begin(tmp_path, 4)
    (folder / "engine").mkdir()
    (folder / "engine" / "weights.pt").write_bytes(bytes(1000))
    path = finish(folder, RunState("run", 4, 0, {}, ranks=1, zero=0), keep=1)
    check(path)
    (path / "engine" / "weights.pt").write_bytes(bytes(500) + b"\x01" + bytes(499))
    with pytest.raises(RedraftError, match=r"weights\.pt is damaged\. Remove .*step-000004, to resume from"):
        check(path)
    (path / "engine" / "weights.pt").unlink()
    with pytest.raises(RedraftError, match=r"weights\.pt is missing"):
        check(path)
    (path / "digests.json").write_text('{"engine/weights.pt": "12')  # the disk was full
    with pytest.raises(RedraftError, match=r"digests\.json cannot be read .* Remove .*step-000004"):
        check(path)


def test_every_incarnation_has_a_number_of_its_own_even_without_a_checkpoint(tmp_path):
    assert [next_incarnation(tmp_path) for _ in range(3)] == [0, 1, 2]


def test_others_may_read_every_file_of_the_model(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "tokenizer.json").write_text("{}")
    (start / "tokenizer.json").chmod(0o600)
    (start / "model.safetensors").write_text("of the start model")
    write_model(tmp_path, start, Qwen2Config(vocab_size=8), {"weight": torch.ones(2)})
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), 0o644)
    assert load_file(tmp_path / "model" / "model.safetensors")["weight"].tolist() == [1, 1]
