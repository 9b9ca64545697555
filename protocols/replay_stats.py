"""What replay tells of itself: counts of groups and rows, of one shard or of all of a run.

A field of the classes here says in one place how the values of several shards become one, and which metric it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from functools import partial
from itertools import chain
from typing import Any, Literal, Self, TypeVar

from prometheus_client import Gauge

from protocols import metrics
from protocols.errors import WireError
from protocols.metrics import Metric
from protocols.weights import step_of
from protocols.wire import shown

Stats = TypeVar("Stats", bound="HeldStats")
Combine = Literal["sum", "max", "oldest", "newest"]


def figure(combine: Combine, metric: Metric | None = None, default: Any = 0, **labels: str) -> Any:
    """A field: values of shards are added up, or the largest holds (of weights versions that of the smallest or largest
    step, None where none has one); `metric` with `labels` is what Prometheus has."""
    described = {"combine": combine, "metric": metric, "labels": labels}
    if callable(default):
        return field(default_factory=default, metadata=described)
    return field(default=default, metadata=described)


@dataclass(frozen=True, slots=True)
class CorruptGroup:
    """A closed group whose rows are corrupt on the disk, so that it has to be played again under a higher `lease`.

    `group` is its id in hex, `lease` the fencing token of the play that was lost, `order` its place in the order of
    leases, `shard` the ingest endpoint of the service that had it ("" as the service itself says it).
    """

    group: str
    lease: int
    order: int
    shard: str = ""


@dataclass(frozen=True, slots=True)
class HeldStats:
    """What a spool holds. All but `step` and rows and bytes are numbers of groups.

    `step` is the last step that used groups, in the history that stands. `trained_total` are groups whose uses are
    spent, also those that were forgotten since; `dropped` those that nothing will train on, by reason. `rows` and
    `bytes` are those of held groups; bytes are of records, as they lie in the spool.
    """

    open: int = figure("sum", metrics.REPLAY_GROUPS, state="open")
    ready: int = figure("sum", metrics.REPLAY_GROUPS, state="ready")
    claimed: int = figure("sum", metrics.REPLAY_GROUPS, state="claimed")
    used: int = figure("sum", metrics.REPLAY_GROUPS, state="used")
    step: int = figure("max")
    trained_total: int = figure("sum")
    dropped: dict[str, int] = figure("sum", metrics.REPLAY_DROPPED, dict)
    corrupt: tuple[CorruptGroup, ...] = figure("sum", default=())
    rows: int = figure("sum")
    bytes: int = figure("sum", metrics.REPLAY_BYTES)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, for JSON and msgpack."""
        return {**asdict(self), "corrupt": [asdict(group) for group in self.corrupt]}

    @classmethod
    def from_json(cls, told: Any) -> Self:
        """What `to_json` gave. Raises WireError when it is something else."""
        try:
            if told.keys() != {each.name for each in fields(cls)}:
                raise TypeError(f"{shown(list(told))} instead of {len(fields(cls))} others")
            return cls(**{**told, "corrupt": tuple(CorruptGroup(**group) for group in told["corrupt"])})
        except (TypeError, AttributeError) as error:
            raise WireError(f"replay told counts with other fields: {error}") from None


@dataclass(frozen=True, slots=True)
class ReplayStats(HeldStats):
    """What a live service, or all shards of a run, say.

    `fullest` is the share of `max_bytes` that is held, of several shards the largest; `full`: a disk has no room.
    `stored`, `duplicate` and `fenced` count rows, `refused` messages, each since its service started; so does the
    "corrupt" among `dropped`.
    """

    max_bytes: int = figure("sum", metrics.REPLAY_MAX_BYTES)
    fullest: float = figure("max", default=0.0)
    full: bool = figure("max", default=False)
    stored: int = figure("sum", metrics.REPLAY_ROWS, outcome="stored")
    duplicate: int = figure("sum", metrics.REPLAY_ROWS, outcome="duplicate")
    fenced: int = figure("sum", metrics.REPLAY_ROWS, outcome="fenced")
    refused: int = figure("sum", metrics.REPLAY_REFUSED)

    def export(self) -> None:
        """Sets the gauges among the metrics; the counters are counted up where it happens, see `metric_of`."""
        for each in fields(self):
            metric: Metric | None = each.metadata["metric"]
            if metric is not None and metric.kind is Gauge:
                metric_of(each.name).set(getattr(self, each.name))


FIGURES: dict[str, Field] = {each.name: each for each in fields(ReplayStats)}


def metric_of(name: str, **labels: str) -> Any:
    """The metric that the field `name` is, to be set or counted up; `labels` beside those that the field says."""
    described = FIGURES[name].metadata
    labels = described["labels"] | labels
    return described["metric"].labels(**labels) if labels else described["metric"]


def combined(stats: Sequence[Stats]) -> Stats:
    """The counts of several shards as one, each field by what it says of itself."""
    ways = {each.name: COMBINE[each.metadata["combine"]] for each in fields(stats[0])}
    return type(stats[0])(**{name: way([getattr(shard, name) for shard in stats]) for name, way in ways.items()})


def _sum(values: Sequence) -> Any:
    """Also of counts by name, and of tuples, which are joined."""
    if isinstance(values[0], dict):
        return dict(sum(map(Counter, values), Counter()))
    return tuple(chain.from_iterable(values)) if isinstance(values[0], tuple) else sum(values)


def _extreme(values: Sequence[int | None], choose: Callable) -> int | None:
    return choose((version for version in values if version is not None), key=step_of, default=None)


COMBINE: dict[Combine, Callable[[Sequence], Any]] = {
    "sum": _sum,
    "max": max,
    "oldest": partial(_extreme, choose=min),
    "newest": partial(_extreme, choose=max),
}
