"""The viewer's index: it finds what is asked for, shows no step twice, and reads a record that is being written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.view_house import TOKENIZER, RunFolder, dialogue, ids, kept, said

from actors.spelled import BROKEN
from protocols.turns import Role
from redraft.watch.viewer.index import Index
from redraft.watch.viewer.words import Words


@pytest.fixture
def house(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "tiny")


def tasks(found) -> list[str]:
    return [entry.head["task"] for entry in found]


def test_filters_find_what_they_say_newest_first(house):
    house.evaluation("before", 0, ["test/a"], "ww")
    house.step(1, kept("signs/fixed", dialogue("wr")), kept("signs/right", dialogue("rr")))
    house.step(2, kept("signs/broken", dialogue("rw")))
    house.step(3, kept("sums/failed", [said(0, "?", role=Role.ERROR)]), kept("sums/long", dialogue("wwwww")))
    house.evaluation("after", 3, ["test/a"], "wr")
    index = Index(house.folder)
    assert tasks(index.find()) == [
        *("test/a", "sums/long", "sums/failed", "signs/broken", "signs/right", "signs/fixed", "test/a")
    ]
    assert tasks(index.find("fixed")) == ["test/a", "signs/fixed"]
    assert tasks(index.find("broken")) == ["signs/broken"]
    assert tasks(index.find("errors")) == ["sums/failed"]
    assert tasks(index.find("longest"))[0] == "sums/long"
    assert [entry.step for entry in index.find(label="before")] == [0]
    assert tasks(index.find(first=2, last=2)) == ["signs/broken"]
    assert tasks(index.find(task="SIGNS/F")) == ["signs/fixed"]
    assert index.labels() == ["after", "before", "training"]


def test_steps_that_a_resumed_run_played_again_are_shown_once_as_they_were_played_last(house):
    for incarnation, steps in ((0, range(1, 8)), (1, range(5, 7)), (2, range(6, 9))):
        for step in steps:
            house.step(step, *[kept(f"incarnation {incarnation}", dialogue("r"))] * 2, incarnation=incarnation)
    found = [(entry.step, entry.head["task"]) for entry in Index(house.folder).find()]
    expected = [(step, f"incarnation {0 if step < 5 else 1 if step < 6 else 2}") for step in range(8, 0, -1)]
    assert found == [pair for pair in expected for _ in range(2)]


def test_a_line_is_there_once_its_end_is_written_and_then_at_once(house):
    house.step(1, kept("first", dialogue("r")))
    index = Index(house.folder)
    assert tasks(index.find()) == ["first"]
    house.step(2, kept("second", dialogue("r")))
    segment = house.folder / "turns" / "000000.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-30])  # in place, as a writer leaves it that is not done
    assert tasks(index.find()) == ["first"]
    with open(segment, "ab") as file:
        file.write(whole[-30:])
    assert tasks(index.find()) == ["second", "first"]
    assert index.group(index.find()[0].key)["task"] == "second"


def test_what_a_full_disk_cut_is_left_out_and_a_segment_that_went_is_gone(house):
    house.step(1, kept("first", dialogue("r")))
    segment = house.folder / "turns" / "000000.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[: len(whole) // 2] + b"\n" + whole + b"[1, 2]\n{}\n")
    index = Index(house.folder)
    assert tasks(index.find()) == ["first"]
    key = index.find()[0].key
    assert len(index.group(key)["turns"]) == 1
    segment.unlink()
    assert index.group(key) is None and index.find() == [] and index.group("../run:0") is None


def test_numbers_that_json_lacks_do_no_harm(house):
    house.step(1, kept("odd", [said(0, "?", reward=float("nan"), extra={"value": float("inf"), "raw": b"\xff"})]))
    index = Index(house.folder)
    (turn,) = index.group(index.find()[0].key)["turns"]
    assert json.dumps(turn, allow_nan=False) and turn["reward"] is None and turn["extra"]["value"] is None


@pytest.mark.parametrize("text", ["plain", "żółć €3 😀!", f"broken {BROKEN} mark", "7+1-2-8\n"])
def test_every_token_has_its_own_text_also_where_it_is_a_part_of_a_character(house, text):
    words = Words([house.folder / "nowhere", house.folder / "model"])
    tokens = [*ids(text).tolist(), TOKENIZER.eos_token_id]
    spelled = words.spell(tokens)
    assert len(spelled) == len(tokens) and "".join(filter(None, spelled)) == text + "<eos>"
    late = BROKEN in text  # a mark in the text itself looks like a character that is not whole yet
    assert spelled.count(None) == len(text.encode()) - len(text) + late
    assert words.special(tokens) == [len(tokens) - 1] and not words.problem


def test_tokens_that_make_no_character_or_are_in_no_vocabulary_are_shown_as_such(house):
    words = Words([house.folder / "model"])
    euro = ids("€").tolist()
    assert words.spell([*euro[:2], *ids("a").tolist()])[-1].endswith("a")
    assert words.spell(euro[:2])[-1] == BROKEN
    assert words.spell([99_999]) == ["<99999>"]


def test_without_a_tokenizer_ids_are_shown_and_it_is_said_why(tmp_path):
    words = Words([tmp_path])
    assert words.spell([5, 17]) == ["5 ", "17 "] and str(tmp_path / "tokenizer.json") in words.problem
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in Words([tmp_path]).problem


def test_a_large_record_is_indexed_in_a_moment_and_read_on_from_there(house):
    line = kept("large", dialogue("wrwrw"))
    for step in range(2000):
        house.step(step, line)
    index = Index(house.folder)
    began = time.thread_time()
    assert len(index.find()) == 2000
    first = time.thread_time() - began
    house.step(2000, line)
    began = time.thread_time()
    assert len(index.find()) == 2001
    print(
        f"10,000 turns: {1000 * first:.0f} ms of one core, one more group {1000 * (time.thread_time() - began):.0f} ms"
    )
    assert first < 1
