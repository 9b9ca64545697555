"""What Grafana shows of our dashboards, from the answers of a real Prometheus: panels reduced as Grafana does it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support.places import ROOT
from support.watch_house import Prometheus

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
SHOWN_S = 1800  # the dashboards show the last half hour
INTERVAL_S = 15  # $__rate_interval: at least four scrapes, of a second here


@dataclass(frozen=True, slots=True)
class Shown:
    """One value that a panel shows: "" for the name of a series without a legend."""

    name: str
    text: str
    color: str
    value: float | None


def boards() -> dict[str, dict]:
    """The dashboards, by the end of their uid."""
    return {path.stem.removeprefix("redraft-"): json.loads(path.read_text()) for path in DASHBOARDS}


def panels() -> dict[str, dict]:
    """The panels that ask something, by `dashboard: title`."""
    return {
        f"{name}: {panel['title']}": panel
        for name, board in boards().items()
        for panel in board["panels"]
        if panel.get("targets")
    }


def expression(query: str, run: str) -> str:
    """A query as Grafana sends it, with everything chosen where one may, and what a person types."""
    values = {
        "$run": run,
        "$namespace": ".*",
        "$actor": ".*",
        "$price": "1",
        "$peak": "1000",
        "$__rate_interval": f"{INTERVAL_S}s",
    }
    for variable, value in values.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def shown(panel: Mapping[str, Any], prometheus: Prometheus, run: str, at: float | None = None) -> list[Shown]:
    """What the panel shows at that time, now without one: of numbers the reduced value, of lines where they end."""
    at = time.time() if at is None else at
    found = [value for target in panel["targets"] for value in _values(panel, target, prometheus, run, at)]
    if found or panel["type"] != "stat":
        return found
    return [Shown("", panel["fieldConfig"]["defaults"].get("noValue", "-"), _color(panel, None), None)]


def _values(panel: Mapping, target: Mapping, prometheus: Prometheus, run: str, at: float) -> list[Shown]:
    asked = expression(target["expr"], run)
    if panel["type"] == "stat" and not target.get("instant"):
        fields = dict(query=asked, start=str(at - SHOWN_S), end=str(at), step=str(INTERVAL_S))
        series = [
            (one["metric"], [value for _, value in one["values"]])
            for one in prometheus.ask("query_range", **fields)["result"]
        ]
    else:
        found = prometheus.ask("query", query=asked, time=str(at))
        series = (
            [(one["metric"], [one["value"][1]]) for one in found["result"]]
            if found["resultType"] == "vector"
            else [({}, [found["result"][1]])]
        )
    return [_shown(panel, _legend(target, labels), _last(values)) for labels, values in series]


def _last(values: list[str]) -> float | None:
    """The reducer lastNotNull."""
    numbers = [float(value) for value in values]
    return next((number for number in reversed(numbers) if not math.isnan(number)), None)


def _shown(panel: Mapping, name: str, value: float | None) -> Shown:
    options, defaults = panel.get("options", {}), panel["fieldConfig"]["defaults"]
    words = {key: one["text"] for mapping in defaults.get("mappings", ()) for key, one in mapping["options"].items()}
    text = defaults.get("noValue", "-") if value is None else words.get(f"{value:g}", f"{value:g}")
    text = name if options.get("textMode") == "name" else text
    fixed = {
        one["matcher"]["options"]: prop["value"]["fixedColor"]
        for one in panel["fieldConfig"].get("overrides", ())
        for prop in one["properties"]
    }
    return Shown(name, text, fixed.get(name, _color(panel, value)), value)


def _color(panel: Mapping, value: float | None) -> str:
    """By the thresholds; what has no value has the colour of the first."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step for step in steps if step.get("value") is None or (value is not None and value >= step["value"])]
    return reached[-1]["color"]


def _legend(target: Mapping, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target.get("legendFormat", ""))
