"""What replay tells of itself: what travels arrives, and shards are counted as one by what each field says."""

import dataclasses
import json

import msgpack
import pytest

from protocols.errors import WireError
from protocols.replay_stats import CorruptGroup, HeldStats, ReplayStats, combined

LOST = CorruptGroup("0a" * 16, 2, 7, "ipc:///x/ingest")
ONE = ReplayStats(open=1, ready=2, step=9, dropped={"flat": 1, "stale": 2}, corrupt=(LOST,), max_bytes=10, fullest=0.25)
OTHER = ReplayStats(open=3, ready=0, step=7, dropped={"flat": 4, "empty": 1}, max_bytes=10, fullest=0.5, full=True)


def test_counts_arrive_as_they_were_over_json_and_over_the_wire():
    for stats in (ONE, OTHER, ReplayStats()):
        assert ReplayStats.from_json(json.loads(json.dumps(stats.to_json()))) == stats
        assert ReplayStats.from_json(msgpack.unpackb(msgpack.packb(stats.to_json()))) == stats


@pytest.mark.parametrize(
    "told", [{}, {"open": 1}, ONE.to_json() | {"more": 1}, ONE.to_json() | {"corrupt": [{}]}, None, []]
)
def test_counts_with_other_fields_are_refused(told):
    with pytest.raises(WireError, match="other fields"):
        ReplayStats.from_json(told)


def test_shards_are_counted_as_one_by_what_each_field_says():
    whole = combined([ONE, OTHER, OTHER])
    assert (whole.open, whole.ready, whole.max_bytes) == (7, 2, 30), "added up"
    assert (whole.step, whole.fullest, whole.full) == (9, 0.5, True), "the largest"
    assert whole.dropped == {"flat": 9, "stale": 2, "empty": 2} and whole.corrupt == (LOST,)
    assert combined([ONE]) == ONE


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(ReplayStats)])
def test_each_count_says_how_shards_are_combined(name):
    (described,) = (each.metadata for each in dataclasses.fields(ReplayStats) if each.name == name)
    assert described["combine"] in ("sum", "max")
    assert described["metric"] is not None or not described["labels"], "labels belong to a metric"


def test_counts_of_one_kind_are_not_those_of_another():
    with pytest.raises(WireError):
        HeldStats.from_json(ONE.to_json())
