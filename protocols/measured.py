"""How a figure of a report is declared, once: its name, what it is, and every place where it is shown follow from that.

A report is a frozen dataclass whose fields are made by `measured`. To add a metric, add such a field to the report that
knows it (protocols/reports.py) and fill it where that report is made:

    clipped_share: float | None = measured(
        "Share of trained tokens whose ratio was clipped", Value("learner_clipped_share"), group="learner"
    )

From this one declaration follow the key `clipped_share` of metrics.jsonl and of `redraft status --json`, the name
`learner/clipped_share` for TensorBoard and the other trackers, and the Prometheus metric
`redraft_learner_clipped_share` with this text as its help. A field without an exporter is not exported to Prometheus.
docs/watching.md lists all exported metrics; a test says which row is missing.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from prometheus_client import Gauge, Histogram

from protocols.metrics import SECONDS, STEPS, Metric


class Exporter(Metric):
    """A Prometheus metric that is set from the value of a field."""

    def export(self, value: Any) -> None:
        raise NotImplementedError


class Value(Exporter):
    """A gauge with the number itself; a figure over nothing is NaN."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Gauge, name, help)

    def export(self, value: float | None) -> None:
        self.set(math.nan if value is None else value)


class ByRole(Exporter):
    """A gauge for each role in a map, and for no other; with `of`, each value is a map, of which it is that key."""

    def __init__(self, name: str, help: str = "", of: str = ""):
        super().__init__(Gauge, name, help, ("role",))
        self._of = of

    def export(self, value: Mapping[str, Any]) -> None:
        self.set_only({role: found[self._of] if self._of else found for role, found in value.items()})


class ByEnvironment(Exporter):
    """A gauge for each environment in a map, and for no other."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Gauge, name, help, ("environment",))

    def export(self, value: Mapping[str, float]) -> None:
        self.set_only(dict(value))


class ByPart(Exporter):
    """A gauge for each named part in a map, and for no other: few, and named in code (actors/door.py)."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Gauge, name, help, ("component",))

    def export(self, value: Mapping[str, float]) -> None:
        self.set_only(dict(value))


class ByTurn(Exporter):
    """A gauge for each turn number in a list, from 0, and for no other."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Gauge, name, help, ("index",))

    def export(self, value: list[float]) -> None:
        self.set_only({str(index): found for index, found in enumerate(value)})


class ByPhase(Exporter):
    """A histogram of the seconds of each phase."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Histogram, name, help, ("phase",), buckets=SECONDS)

    def export(self, value: Mapping[str, float]) -> None:
        for phase, seconds in value.items():
            self.labels(phase=phase).observe(seconds)


class Ages(Exporter):
    """A histogram of steps, from a map that counts them."""

    def __init__(self, name: str, help: str = ""):
        super().__init__(Histogram, name, help, buckets=STEPS)

    def export(self, value: Mapping[str, int]) -> None:
        for age, count in value.items():
            for _ in range(count):
                self.observe(int(age))


@dataclass(frozen=True, slots=True)
class Measure:
    """What one field says, and who is told."""

    what: str
    unit: str
    exporters: tuple[Exporter, ...]
    group: str
    tracked: str | None

    def name(self, key: str) -> str:
        """The name that trackers know the field `key` by, "" where they are not told of it."""
        return f"{self.group}/{key}" if self.tracked is None else self.tracked


def measured(
    what: str,
    *exporters: Exporter,
    unit: str = "",
    group: str = "learner",
    tracked: str | None = None,
    default: Any = None,
    factory: Any = dataclasses.MISSING,
) -> Any:
    """A field of a report: see the module. Trackers know it as `group/KEY`, or as `tracked` ("": not at all).

    An exporter without a help text of its own has `what`. `default` is what the field has where nothing was measured;
    `factory` makes it where it is a list or a map.
    """
    for exporter in exporters:
        exporter.help = exporter.help or what
    metadata = {"measure": Measure(what, unit, exporters, group, tracked)}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Reported:
    """Base of frozen dataclasses that are lines of JSON. Reports within a report lie flat in its line."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in _keys(type(self)):
            value = getattr(self, name)
            found |= value.to_json() if isinstance(value, Reported) else {name: value}
        return found

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """The report of a line; what the line lacks has its default."""
        found = {name: kind.from_json(line) for name, kind in _parts(cls).items()}
        found |= {name: line[name] for name in _keys(cls) if name in line and name not in found}
        return cls(**found)

    def measures(self) -> Iterator[tuple[str, Measure, Any]]:
        """(name at trackers, declaration, value) of each measured field, those of parts included."""
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  subclasses are dataclasses
            value, measure = getattr(self, field.name), field.metadata.get("measure")
            if isinstance(value, Reported):
                yield from value.measures()
            elif measure is not None:
                yield measure.name(field.name), measure, value

    def export(self) -> None:
        """Sets this process's Prometheus metrics to this report."""
        for _, measure, value in self.measures():
            for exporter in measure.exporters:
                exporter.export(value)


@cache
def _keys(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def _parts(cls: type) -> dict[str, type[Reported]]:
    """The fields of a report that are reports."""
    kinds = typing.get_type_hints(cls)
    return {name: kinds[name] for name in _keys(cls) if _is_report(kinds[name])}


def _is_report(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Reported)
