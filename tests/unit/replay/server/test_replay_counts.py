"""What a service tells its peers and what Prometheus reads of it are the same counts."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from prometheus_client import REGISTRY, Gauge
from support.spool_house import CLAIMED, OPEN, READY, fill, turns_of

from protocols.replay_stats import ReplayStats
from protocols.wire import ENTRY, Row, row_of
from replay.config import ReplaySettings
from replay.server.store import Store

COUNTS = {each.name: each.metadata for each in dataclasses.fields(ReplayStats) if each.metadata["metric"] is not None}
GAUGES = {name for name, described in COUNTS.items() if described["metric"].kind is Gauge}


def exported(name: str) -> float:
    """The metric that this count is; summed over the labels that the count does not say."""
    metric, labels = COUNTS[name]["metric"], COUNTS[name]["labels"]
    samples = [sample for family in REGISTRY.collect() for sample in family.samples if sample.name == metric.name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def counted(stats: ReplayStats, name: str) -> float:
    value = getattr(stats, name)
    return sum(value.values()) if isinstance(value, dict) else value


@pytest.fixture
def store(tmp_path):
    store = Store(fill(tmp_path / "spool"), "run", ReplaySettings())
    yield store
    store.close()


def send(store, *items):
    """As the service does with the rows of a message."""
    packed = [row_of(item, 0) for item in items]
    rows = [(Row._make(ENTRY.unpack(entry)), (entry, record)) for entry, record in packed]
    store.count_rows(Counter(store.change(lambda draft: [draft.store(row, packed) for row, packed in rows])))


def test_each_count_is_the_metric_that_it_names(store):
    fresh, before = store.stats(), {name: exported(name) for name in COUNTS}
    send(store, *turns_of(OPEN, lease=2)[:2], *turns_of(READY))
    send(store, *turns_of(OPEN, lease=1)[:2], *turns_of(CLAIMED)[:1])
    store.refuse("header", "nonsense")
    store.change(lambda draft: draft.discard_corrupt(READY))
    store.export()
    stats = store.stats()
    for name in GAUGES:
        assert exported(name) == counted(stats, name), name
    for name in COUNTS.keys() - GAUGES:
        assert exported(name) - before[name] == counted(stats, name) - counted(fresh, name) > 0, name
