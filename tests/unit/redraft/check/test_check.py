"""`redraft check`: each promise that a run folder can show is looked at, and what breaks it is named."""

from __future__ import annotations

import json
import shutil

import pytest
from support.checked_house import BATCH, group_of, journalled, kept_run, line, read_here, written
from support.spool_house import edit, flip, stored
from typer.testing import CliRunner

from learner import checkpoint, journal
from protocols.reports import RunEnded
from redraft.check import invariants
from redraft.check.folder import History
from redraft.cli.main import app
from redraft.owner import Owner
from replay.config import ReplaySettings
from replay.server.store import Store


@pytest.fixture
def here(monkeypatch):
    read_here(monkeypatch)


def broken(run, recipe) -> dict[str, tuple[str, ...]]:
    """Which checks fail, and why."""
    return {found.name: found.problems for found in invariants.checked(History(run, recipe)) if found.problems}


def test_a_run_as_a_run_leaves_it_is_whole_and_the_command_says_a_line_a_check(tmp_path):
    run, _ = kept_run(tmp_path / "r")
    said = CliRunner().invoke(app, ["check", str(run.folder)])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert len(lines) == len(invariants.IN_FOLDER) + len(invariants.IN_SPOOL)
    assert all(told.startswith("ok ") for told in lines)
    assert "steps: 1 to 4, each once" in said.output and f"{4 * BATCH} uses by 4 steps" in said.output


def test_a_broken_promise_is_named_and_the_exit_code_is_1(tmp_path):
    run, _ = kept_run(tmp_path / "r")
    (run.checkpoints / "step-000004" / "model" / "model.safetensors").write_bytes(b"other")
    said = CliRunner().invoke(app, ["check", str(run.folder)])
    assert said.exit_code == 1 and "BROKEN  checkpoints" in said.output and "is damaged" in said.output


def test_a_run_that_goes_on_is_refused_in_one_line(tmp_path):
    run, _ = kept_run(tmp_path / "r")
    owner = Owner(run.folder, "train")
    owner.take()
    try:
        said = CliRunner().invoke(app, ["check", str(run.folder)])
    finally:
        owner.release()
    assert "goes on" in str(said.exception) and "Stop it" in str(said.exception)


def test_steps_after_the_newest_checkpoint_are_a_future_that_a_resume_undoes(tmp_path, here):
    assert not broken(*kept_run(tmp_path / "r", steps=4, covered=2, ended=""))


def test_a_run_that_was_told_to_stop_when_it_had_lost_its_last_steps_is_whole(tmp_path, here):
    run, recipe = kept_run(tmp_path / "r", steps=4, covered=2, ended="stopped")
    run.write("summary.json", RunEnded("r", "stopped", steps=2, checkpoint=2).to_json())
    assert not broken(run, recipe)


def test_a_resumed_run_whose_steps_were_played_again_is_whole(tmp_path, here):
    run, recipe = kept_run(tmp_path / "r", steps=4, covered=2, ended="")
    store = Store(run.spool(0), run.id, ReplaySettings())
    for number in range(2 * BATCH, 4 * BATCH):
        store.change(lambda draft, number=number: draft.resume(group_of(number), 2))
    for number in range(2 * BATCH, 3 * BATCH):
        store.change(lambda draft, number=number: draft.commit(group_of(number), 3))
    store.close()
    checkpoint.next_incarnation(run.folder)
    run.append("metrics.jsonl", line(3, incarnation=1, time_s=5.0).to_json())
    journalled(run, 3, [group_of(2 * BATCH + number) for number in range(BATCH)], incarnation=1)
    assert not broken(run, recipe)


def lose_a_line(run):
    kept = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "metrics.jsonl").write_text("".join(kept[:1] + kept[2:]))


def repeat_a_version(run):
    run.append("metrics.jsonl", line(4).to_json())


def lose_the_incarnation(run):
    (run.checkpoints / "incarnation").write_text("")


def turn_time_back(run):
    kept = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    kept[2]["time_s"] = 0.5
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))


def train_half_a_batch(run):
    text = (run.folder / "metrics.jsonl").read_text()
    (run.folder / "metrics.jsonl").write_text(text.replace('"groups": 2', '"groups": 1', 1))


def write_nan(run):
    with open(run.folder / "evaluations.jsonl", "a") as file:
        file.write('{"label": "eval", "step": 4, "version": 4, "n": 3, "seconds": NaN}\n')


def tear_a_file(run):
    (run.folder / "summary.json").write_text('{"state": "do')


def leave_an_evaluation_unmarked(run):
    run.append("evaluations.jsonl", {"step": 4, "version": 4, "n": 10})


def evaluate_a_step_that_was_never_done(run):
    run.append("evaluations.jsonl", {"label": "eval", "step": 7, "version": 7, "n": 10})


def take_another_runs_checkpoint(run):
    facts = run.folder / "run.json"
    own = facts.read_text()
    facts.write_text(own.replace(run.id, "other"))
    aside = checkpoint.begin(run.folder, 6)
    checkpoint.finish(aside, checkpoint.RunState("other", 4, 0, {}, 1, 0), keep=9)
    facts.write_text(own)


def end_without_a_checkpoint(run):
    shutil.rmtree(run.checkpoints / "step-000004")


def flip_a_bit(run):
    _, row, *_ = stored(run.spool(0), group_of(3 * BATCH))
    flip(run.spool(0), row, 60)


def use_a_group_twice(run):
    marks(run, group_of(0), b"trained 1 2")


def use_a_group_of_no_step(run):
    marks(run, group_of(99), b"trained 2")


def forget_too_early(run):
    marks(run, group_of(98), b"trained 5")


def marks(run, group, mark):
    edit(run.spool(0), lambda txn, names: txn.put(group, mark, db=names["marks"]))


def journal_other_groups(run):
    journalled(run, 2, [group_of(2), group_of(0)])


def tear_the_journal(run):
    file = journal.path(run.folder, 3)
    file.write_bytes(file.read_bytes()[:-9])


def skip_groups(run):
    written(run, 6)
    state = json.loads((run.checkpoints / "step-000006" / "state.json").read_text())
    state["cursor"]["position"] = 40
    aside = checkpoint.begin(run.folder, 6)
    checkpoint.finish(aside, checkpoint.RunState(**state), keep=9)


def store_elsewhere_too(run):
    store = Store(run.spool(1), run.id, ReplaySettings())
    store.close()
    edit(run.spool(1), lambda txn, names: txn.put(group_of(0), b"trained 1", db=names["marks"]))


BREAKS = [
    (lose_a_line, "steps", "step 2 has no line"),
    (end_without_a_checkpoint, "steps", "its newest checkpoint is of 2"),
    (repeat_a_version, "versions", "version 4 after version 4"),
    (lose_the_incarnation, "versions", "incarnation"),
    (turn_time_back, "figures", "before step 2"),
    (train_half_a_batch, "figures", "trained 1 groups where a batch has 2"),
    (write_nan, "files", "NaN is no JSON"),
    (tear_a_file, "files", "summary.json"),
    (leave_an_evaluation_unmarked, "evaluations", "does not say its label"),
    (evaluate_a_step_that_was_never_done, "evaluations", "4 steps were done"),
    (take_another_runs_checkpoint, "checkpoints", "is of run other"),
    (flip_a_bit, "spool", "checksum"),
    (use_a_group_twice, "groups", "used by steps (1, 2)"),
    (use_a_group_of_no_step, "groups", "step 2 trained 2 groups, and replay knows 3"),
    (store_elsewhere_too, "groups", "in 2 shards"),
    (forget_too_early, "forgotten", "was used by step 5"),
    (journal_other_groups, "journal", "step 2 trained other groups"),
    (tear_the_journal, "journal", "fails its checksum"),
    (skip_groups, "skipped", "40 groups were leased"),
]


@pytest.mark.parametrize(("breaks", "name", "words"), BREAKS, ids=[found[0].__name__ for found in BREAKS])
def test_each_broken_promise_is_found(tmp_path, here, breaks, name, words):
    run, recipe = kept_run(tmp_path / "r")
    breaks(run)
    found = getattr(invariants, name)(History(run, recipe))
    assert found.name == name and any(words in problem for problem in found.problems), found


def test_every_check_has_something_that_breaks_it():
    names = {invariant.__name__ for invariant in (*invariants.IN_FOLDER, *invariants.IN_SPOOL)}
    assert names == {name for _, name, _ in BREAKS}


def test_a_torn_line_is_counted_and_breaks_nothing_as_every_reader_leaves_it_out(tmp_path, here):
    run, recipe = kept_run(tmp_path / "r")
    with open(run.folder / "evaluations.jsonl", "ab") as file:
        file.write(b'{"label": "ev')
    (run.checkpoints / ".step-000009.tmp").mkdir()
    (found,) = (each for each in invariants.checked(History(run, recipe)) if each.name == "files")
    assert not found.problems and "1 torn lines" in found.seen and "1 left half written" in found.seen
