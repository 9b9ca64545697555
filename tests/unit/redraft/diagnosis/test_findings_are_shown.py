"""What a run finds about itself is shown where people look."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from protocols.reports import Finding, RunStatus
from redraft.report.page import write_report
from redraft.watch import live, top

FINDINGS = (
    Finding("answers_cut", "All 80 responses were cut.", "Raise a.", since_s=3.0, step=1),
    Finding("groups_flat", "9 of 9 groups.", "Take [easier] tasks.", since_s=4.0, step=1),
    Finding("reward_constant", "All scores.", "Vary.", since_s=4.0, step=1),
)
STATUS = RunStatus("watched", state="training", step=1, steps=9, findings=FINDINGS)


@pytest.mark.parametrize("shown", [lambda: live.panel("watched", STATUS), lambda: top.now(STATUS)], ids=["live", "top"])
def test_the_views_show_the_first_findings_whole_and_the_others_by_name(shown):
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(shown())
    text = " ".join(console.export_text().split())
    assert "All 80 responses were cut. Raise a." in text and "9 of 9 groups. Take [easier] tasks." in text
    assert "and reward_constant" in text


def test_a_line_of_a_log_names_the_causes():
    assert "cannot learn: answers_cut, groups_flat, reward_constant" in live.line("watched", STATUS)
    assert "cannot learn" not in live.line("watched", replace(STATUS, findings=()))


def test_events_that_come_together_are_all_printed_once():
    out = io.StringIO()
    with live.LiveView(Console(file=out, width=100), "watched") as view:
        for events in ((), ("1 a", "1 b"), ("1 a", "1 b"), ("1 a", "1 b", "2 c")):
            view.update(replace(STATUS, events=events))
    assert [text for text in out.getvalue().splitlines() if text[:2] in ("1 ", "2 ")] == ["1 a", "1 b", "2 c"]


def test_the_report_shows_what_was_found_and_when_it_ended(tmp_path):
    lines = [found.to_json() for found in (*FINDINGS[:2], replace(FINDINGS[0], until_s=63.0))]
    (tmp_path / "findings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert page.count("All 80 responses were cut.") == 1 and "from 0 min 3 s to 1 min 3 s" in page
    assert "Take [easier] tasks." in page and "from 0 min 4 s on" in page
