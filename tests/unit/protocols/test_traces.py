"""Spans from the lease of a group to the step that used it, as a collector takes them; none unless asked for."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from support.collector import Collector, facts
from support.replay_house import rows_of, turn_of
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

from actors import spans
from actors.actor import Actor
from actors.tasks import TaskOrder
from learner.ranks.lead import Lead
from protocols import traces
from protocols.errors import SettingError
from protocols.turns import Lease, Role
from protocols.wire import ENTRY, Row, row_of
from redraft.control.leases import LeaseBook
from replay.config import ReplaySettings
from replay.server.store import Store

GROUP = bytes(range(16))


@pytest.fixture
def collector(monkeypatch):
    with Collector().serving() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setattr(traces, "_sender", None)
        yield made


def test_nothing_of_opentelemetry_is_imported_before_it_is_asked_for():
    code = (
        "import sys; from protocols import traces; from redraft import logs;"
        "traces.check(False); traces.record('close', traces.closed(bytes(16)), 1.0); traces.flush();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=deadline_s(60)
    )
    assert ran.returncode == 0, ran.stderr


def test_a_part_whose_logs_have_traces_sends_them_with_its_name_and_that_of_the_run(collector, tmp_path):
    code = (
        "from pathlib import Path; from protocols import traces; from redraft import logs;"
        "from redraft.config import LogSettings;"
        f"logs.of_part(Path({str(tmp_path)!r}), 'exp-1', 'replay-0', LogSettings(traces=True));"
        "traces.record('close', traces.closed(bytes(range(16))), 1.0); traces.flush()"
    )
    (tmp_path / "logs").mkdir()
    there = {**ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=there, capture_output=True, text=True, timeout=deadline_s(60)
    )
    assert ran.returncode == 0, ran.stderr
    assert [part for part, _ in collector.trace(GROUP)["close"]] == ["replay-0"]


def test_a_play_lies_within_its_lease_and_a_step_is_linked_to_the_groups_that_it_used(collector):
    traces.begin("exp-1", "actor-0")
    of = GROUP, 3
    traces.record("lease", traces.leased(*of), 2.0, end="closed")
    traces.record("play", traces.played(*of), 1.5, traces.leased(*of), error="it broke")
    traces.record("close", traces.closed(GROUP), 0.001, traces.played(*of))
    traces.record("step", traces.stepped("run", 7), 4.0, links=[traces.closed(GROUP)], step=7)
    traces.flush()
    (lease,), (play,), (close,), (step,) = map(collector.named, ("lease", "play", "close", "step"))
    assert {span.trace_id for span in (lease, play, close)} == {GROUP} and step.trace_id != GROUP
    assert (lease.parent_span_id, play.parent_span_id, close.parent_span_id) == (b"", lease.span_id, play.span_id)
    assert [(link.trace_id, link.span_id) for link in step.links] == [(GROUP, close.span_id)]
    assert facts(step) == {"redraft.step": 7} and facts(lease) == {"redraft.end": "closed"}
    assert lease.end_time_unix_nano - lease.start_time_unix_nano == 2_000_000_000
    assert (play.status.code, play.status.message) == (2, "it broke") and collector.trace(GROUP)["play"][0][
        0
    ] == "actor-0"


def test_another_play_of_a_group_has_spans_of_its_own_in_the_same_trace():
    found = {traces.leased(GROUP, 0), traces.leased(GROUP, 1), traces.played(GROUP, 0), traces.turned(GROUP, 0, 0)}
    assert len({span.id for span in found}) == 4 and {span.trace for span in found} == {GROUP}


def test_the_sampler_of_opentelemetry_keeps_or_drops_a_trace_as_a_whole(collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    traces.begin("exp-1", "actor-0")
    groups = [bytes([n]) * 16 for n in range(0, 256, 16)]
    for group in groups:
        traces.record("lease", traces.leased(group, 0), 1.0)
        traces.record("play", traces.played(group, 0), 1.0, traces.leased(group, 0))
    traces.flush()
    leases, plays = ({span.trace_id for span in collector.named(name)} for name in ("lease", "play"))
    assert leases == plays and 0 < len(leases) < len(groups)


def test_a_lease_that_ends_is_a_span_with_how_it_ended(collector):
    traces.begin("exp-1", "controller")
    order = TaskOrder([{"id": "a"}, {"id": "b"}], seed=0)
    book = LeaseBook(order, "run", 0, 0, 0, lambda ids: (), lambda group: "")
    kept, lost = book.give(0, 2, 0.0)
    book.closed([(kept.group, kept.fencing_token)])
    book.lost(lost.group, lost.fencing_token, why="its actor died")
    traces.flush()
    ends = {span.trace_id: (facts(span)["redraft.end"], span.status.message) for span in collector.named("lease")}
    assert ends == {kept.group: ("closed", ""), lost.group: ("lost", "its actor died")}


class Playing(Actor):
    """An actor whose play is one turn; of `breaks` it is given up."""

    def __init__(self, breaks: bool) -> None:
        spec: Any = SimpleNamespace(actors=SimpleNamespace(lease_s=60.0))
        super().__init__(spec, "actor-0", None)
        self._breaks = breaks

    async def _play_group(self, lease: Lease) -> str:
        spans.turn(turn_of(lease.group, 0, lease.fencing_token))
        return self._abandon(lease, "it broke") if self._breaks else ""


def test_the_actor_replay_and_the_learner_record_what_they_did_with_a_group(collector, tmp_path):
    traces.begin("exp-1", "all")
    lease = Lease(GROUP, 3, 0, {}, 0)
    asyncio.run(Playing(breaks=True)._play(lease))
    store = Store(tmp_path, "run", ReplaySettings())
    rows = [row_of(item, 0, 1.0) for item in rows_of(GROUP, lease=3)]
    store.change(lambda draft: [draft.store(Row._make(ENTRY.unpack(packed[0])), packed) for packed in rows])
    store.close()
    lead: Any = object.__new__(Lead)
    lead._run_id, lead._progress = "run", SimpleNamespace(step=7, incarnation=0)
    lead._trace(SimpleNamespace(ids=[GROUP]), {"wait": 0.5}, 2.0)
    traces.flush()
    (play,), (turn,), (close,), (step,) = map(collector.named, ("play", "turn", "close", "step"))
    assert play.parent_span_id == traces.leased(GROUP, 3).id and play.status.message == "it broke"
    assert turn.parent_span_id == close.parent_span_id == play.span_id and facts(turn)["redraft.role"] == "attempt"
    assert [link.span_id for link in step.links] == [close.span_id]
    assert facts(step) == {"redraft.step": 7, "redraft.wait_s": 0.5} and facts(close) == {"redraft.lease": 3}


def test_a_collector_that_takes_nothing_is_told_of_once_and_again_when_it_does(collector, caplog):
    traces.begin("exp-1", "actor-0")
    collector.refuses = True
    with caplog.at_level(logging.WARNING, "redraft.traces"):
        for turn in range(2):
            traces.record("turn", traces.turned(GROUP, 0, turn), 0.1, role=Role.ATTEMPT.name)
            traces.flush()
        collector.refuses = False
        traces.record("turn", traces.turned(GROUP, 0, 2), 0.1)
        traces.flush()
    assert [record.getMessage()[:22] for record in caplog.records] == [
        "traces cannot be sent,",
        "traces are sent again;",
    ]
    assert "2 spans were lost" in caplog.text and len(collector.named("turn")) == 1 and collector.asked == 3


def test_traces_without_the_packages_are_refused_before_the_run_starts(monkeypatch):
    traces.check(True)
    monkeypatch.setattr(traces, "PACKAGES", ("opentelemetry.sdk", "opentelemetry.not_there.at_all"))
    traces.check(False)
    with pytest.raises(SettingError, match=r"logs\.traces.*redraft\[traces\]"):
        traces.check(True)
