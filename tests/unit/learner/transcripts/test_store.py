"""The store of transcripts: what is kept is what was played, a fair sample of it, within its bytes; it ends no run."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import pytest

from learner.batches.batch import prepare
from learner.batches.linearise import linearise
from learner.config import LearnerSettings, RecordSettings
from learner.objectives import coefficients, make
from learner.transcripts import store, transcript
from learner.transcripts.store import TranscriptStore, picks, sample, write_evaluation
from protocols.turns import Group, Role, Stop, Turn
from protocols.weights import version_of

KEPT = ("turn", "parent", "after", "episode", "index", "terminated", "truncated", "extra")


def turn(number: int, response: list[int], logprobs: list[float] | None = None, **fields) -> Turn:
    """One that follows the turn before it, unless `fields` say otherwise."""
    fields = {"parent": number - 1, "after": number - 1, "role": Role.ATTEMPT, "versions": ((0, 3),)} | fields
    logprobs = [-0.25 * token for token in response] if logprobs is None else logprobs
    arrays = (np.array([1, 2], np.int32), np.array(response, np.int32), np.array(logprobs, np.float32))
    return Turn(b"g" * 16, 1, number, fields.pop("parent"), *arrays, **fields)


def answered(*success: bool, role: Role = Role.ATTEMPT) -> tuple[Turn, ...]:
    return tuple(turn(n, [5], role=role, extra={"success": one}) for n, one in enumerate(success))


def group(*turns: Turn, task: str = "signs/7128", number: int = 0) -> Group:
    return Group(number.to_bytes(16, "big"), 1, turns, {"task": task})


def settings(**values) -> LearnerSettings:
    base = {
        "row_tokens": 64,
        "micro_tokens": 64,
        "objective": {"name": "awr", "temperature": 1.0},
        "credit": {"name": "raw"},
    }
    return LearnerSettings(**base | values)


def lines(folder: Path, pattern: str = "*.jsonl") -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob(f"turns/{pattern}")) for line in path.open()]


def test_what_is_kept_of_a_group_is_what_was_played_with_the_weight_of_each_token(tmp_path):
    played = group(
        turn(0, [3, 4], reward=1.0, timing=(0.5, 0.25, 0.125), extra={"success": True, "answer": "34"}),
        turn(1, [6, 7, 8], [-0.5, math.nan, -1.5], role=Role.REFLECTION, reward=0.5, versions=((0, 3), (2, 4))),
        turn(2, [9], [math.nan], role=Role.REVISION, stop=Stop.AUTHORED, versions=(), truncated=True),
    )
    choice = settings(roles={"attempt": 1.0, "reflection": 3.0}, record={"groups": 1})
    TranscriptStore(tmp_path, choice.record).write(4, 4, prepare([played], 3, choice).kept)
    (kept,) = lines(tmp_path)
    assert (kept["step"], kept["version"], kept["label"]) == (4, 4, "training")
    assert (kept["task"], kept["group"], kept["size"], kept["tokens"]) == ("signs/7128", played.id.hex(), 3, 6)
    for was, told in zip(played.turns, kept["turns"], strict=True):
        assert {name: told[name] for name in KEPT} == {name: getattr(was, name) for name in KEPT}
        assert (told["role"], told["stop"]) == (was.role.name.lower(), was.stop.name.lower())
        assert told["prompt"] == was.prompt.tolist() and told["response"] == was.response.tolist()
        assert told["reward"] == was.reward and told["timing"] == list(was.timing)
        assert [list(pair) for pair in was.versions] == told["versions"]
        expected = [None if math.isnan(value) else pytest.approx(value, abs=1e-4) for value in was.logprobs]
        assert told["logprobs"] == expected
    first, second, third = kept["turns"]
    assert third["weights"] is None, "its role is not trained"
    trained = first["weights"] + second["weights"]
    assert np.mean(trained) == pytest.approx(1, abs=0.01), "1 is the weight of an average trained token"
    assert second["weights"][0] / first["weights"][0] == pytest.approx(
        3 * np.exp(second["advantage"] - first["advantage"]), rel=0.02
    ), "three times by its role, and by the objective's weight of its advantage"


def test_a_turn_that_the_credit_leaves_out_has_no_advantage(tmp_path):
    choice = settings(credit={"name": "raw"}, record={"groups": 1})
    worth = [np.array([0.5, np.nan], np.float32)]
    told = [transcript.told(one, value) for one, value in zip(answered(True, False), worth[0], strict=True)]
    assert [one["advantage"] for one in told] == [0.5, None]
    assert (
        prepare([group(*answered(True))], 0, choice.model_copy(update={"record": RecordSettings(groups=0)})).kept == []
    )


@pytest.mark.parametrize(
    ("turns", "marks", "fixed", "broken"),
    [
        (answered(False, True), ["wr"], 1, 0),
        (answered(True, False, True), ["rwr"], 1, 1),
        ((turn(0, [1]), turn(1, [1], role=Role.REFLECTION), turn(2, [1], extra={"success": True})), ["w.r"], 1, 0),
        (answered(False, False, True, role=Role.ACTION), ["--r"], 0, 0),
        (
            (
                turn(0, [1], role=Role.ACTION, extra={"refused": True}),
                turn(1, [1], role=Role.ACTION),
                turn(2, [1], role=Role.ACTION, terminated=True, extra={"success": True}),
            ),
            ["w-r"],
            1,
            0,
        ),
        ((turn(0, [1], role=Role.ACTION, truncated=True),), ["w"], 0, 0),
        (
            (turn(0, [1]), *(turn(n, [1], parent=0, after=0, episode=n, extra={"success": True}) for n in (1, 2))),
            ["w", "r", "r"],
            2,
            0,
        ),
        ((turn(0, [], role=Role.ERROR, extra={"error": "it broke"}),), ["e"], 0, 0),
    ],
)
def test_the_head_says_how_each_turn_ended_and_what_was_fixed_or_broken(turns, marks, fixed, broken):
    found = transcript.head(turns)
    assert (found["marks"], found["fixed"], found["broken"]) == (marks, fixed, broken)
    assert found["errors"] == sum("e" in episode for episode in marks)


def test_the_sample_is_fair_but_for_errors_which_are_kept_first_and_marked():
    fine, failed = group(*answered(True)), group(turn(0, [], role=Role.ERROR))
    batch = [fine] * 64
    counts = np.zeros(64)
    for step in range(64):
        kept = picks(batch, 4, step)
        assert set(kept.values()) == {"stride"} and np.diff(list(kept)).tolist() == [16] * 3
        counts[list(kept)] += 1
    assert set(counts) == {4}, "over the steps every place of a batch is kept as often as any other"
    batch[5] = batch[6] = batch[7] = failed
    kept = picks(batch, 4, 0)
    assert list(kept.items()) == [(0, "stride"), (5, "error"), (6, "error"), (32, "stride")]
    assert sorted(picks([failed] * 8, 4, 2).values()) == ["error"] * 2 + ["stride"] * 2, "never errors alone"
    assert picks([fine] * 3, 4, 1) == dict.fromkeys(range(3), "stride")


def kept_of(task: str) -> list[tuple[dict, list[dict]]]:
    turns = answered(True)
    return [
        ({"group": "", "task": task, "picked": "stride"} | transcript.head(turns), [transcript.told(t) for t in turns])
    ]


def test_the_oldest_segments_go_when_the_record_is_full(tmp_path):
    limit = 1 << 20
    kept, sized = TranscriptStore(tmp_path, RecordSettings(max_bytes=limit)), kept_of("t" * 20_000)
    for step in range(1, 81):
        kept.write(step, step, sized)
        held = sum(path.stat().st_size for path in tmp_path.glob("turns/*.jsonl"))
        assert held <= limit
    steps = [line["step"] for line in lines(tmp_path)]
    assert held > limit * 3 / 4 and steps == list(range(steps[0], 81)) and steps[0] > 1


def test_a_incarnation_begins_a_segment_of_its_own_so_that_a_half_line_spoils_no_other(tmp_path):
    TranscriptStore(tmp_path, RecordSettings()).write(1, 1, kept_of("first"))
    segment = tmp_path / "turns" / "000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:-20])
    TranscriptStore(tmp_path, RecordSettings()).write(1, version_of(1, 1), kept_of("second"))
    assert [line["task"] for line in lines(tmp_path, "000001.jsonl")] == ["second"]


def test_a_disk_that_is_full_is_said_once_and_nothing_but_its_lines_is_lost(tmp_path, monkeypatch, caplog):
    kept = TranscriptStore(tmp_path, RecordSettings())
    kept.write(1, 1, kept_of("first"))

    class Full:
        """Takes half of what is written, as a disk does that runs full."""

        def __init__(self, path, mode):
            self.file = open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data: bytes):
            self.file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(store, "open", Full, raising=False)
        for step in (2, 3):
            kept.write(step, step, kept_of("lost"))
    assert [one.message for one in caplog.records if "No space left" in one.message] == [
        "turns of step 2 are not kept for `redraft view`: [Errno 28] No space left on device; this is logged once"
    ]
    kept.write(4, 4, kept_of("last"))
    whole = [line for line in (tmp_path / "turns" / "000000.jsonl").read_text().split("\n") if line.endswith("]}")]
    assert [json.loads(line)["task"] for line in whole] == ["first", "last"]


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "turns").write_text("a file stands in the way")
    TranscriptStore(tmp_path, RecordSettings()).write(1, 1, kept_of("lost"))
    write_evaluation(tmp_path, {"label": "before", "step": 0, "version": 0}, [{"id": "t"}], [answered(True)])
    assert len(caplog.records) == 2


def test_an_evaluation_keeps_the_same_tasks_before_and_after(tmp_path):
    tasks = [{"id": f"t{n}"} for n in range(200)]
    for label, step, right in (("before", 0, False), ("after", 8, True)):
        write_evaluation(tmp_path, {"label": label, "step": step, "version": step}, tasks, [answered(right)] * 200)
    before, after = lines(tmp_path, "before-000000.jsonl"), lines(tmp_path, "after-000008.jsonl")
    assert [line["task"] for line in before] == [line["task"] for line in after] and 40 < len(before) <= 64
    assert {line["marks"][0] for line in before} == {"w"} and {line["marks"][0] for line in after} == {"r"}
    assert before[0]["turns"][0]["weights"] is None and before[0]["turns"][0]["advantage"] is None


def test_keeping_turns_costs_a_small_part_of_a_step(tmp_path):
    turns = [turn(n, list(range(9)), [-0.5] * 9, role=Role.REFLECTION if n % 2 else Role.ATTEMPT) for n in range(9)]
    batch, choice = [group(*turns, number=n) for n in range(128)], settings()
    worth = [np.ones(9, np.float32)] * len(batch)
    found = linearise(batch, worth, choice, make(choice.objective))
    shares = coefficients(found.sequences, choice, make(choice.objective))
    kept, costs = TranscriptStore(tmp_path, RecordSettings()), []
    for step in range(9):
        began = time.thread_time()
        kept.write(step, step, sample(batch, worth, found, shares, 4, step))
        costs.append(time.thread_time() - began)
    print(f"{1000 * float(np.median(costs)):.2f} ms of one core a step, for 4 of 128 groups of 9 turns")
    assert np.median(costs) < 0.05
