"""What the dashboards are built from: a few kinds of panels, and rows of them.

Queries say {run="$run"}, or {run="$run",name=~"$actor"} for one of the actors; which namespace is added to them here.
Numbers are asked for this moment, so that one of a run that is dead is no number; lines show what was.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    GridPos,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableRefresh,
)

WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
NEUTRAL, GOOD, CARE, BAD = "text", "green", "orange", "red"
NO_VALUE = "no data"
RUN = re.compile(r'\{(?=run=~?"\$run")')
Query = tuple[str, str]
"""PromQL and the legend of its series."""
Row = tuple[str, Sequence[Builder[Panel]]]
"""A title, and panels that share the width; one without a title goes on under the one before."""
Steps = Sequence[tuple[float, str]]
"""From which value on which colour. Below the first, and without a value, it is NEUTRAL: no data is not good."""
ANY: Steps = ()
"""Of a number that is neither good nor bad."""


def lines(title: str, description: str, unit: str, *queries: Query, limits: Steps = ()) -> timeseries.Panel:
    """Values over time, with a line where a limit is."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .no_value(NO_VALUE)
        .thresholds(_thresholds(limits))
        .fill_opacity(8)
        .line_width(1)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .height(HEIGHT)
    )
    if limits:
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED))
    return _asking(panel, queries)


def shares(title: str, description: str, query: Query) -> timeseries.Panel:
    """Parts of a whole over time, stacked up to 100%."""
    panel = lines(title, description, "percentunit", query)
    return panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL)).fill_opacity(70).min(0).max(1)


def number(
    title: str, description: str, unit: str, query: Query, steps: Steps, words: Mapping[float, str] | None = None
) -> stat.Panel:
    """The value of this moment, in the colour that it has from `steps`; as a word, for values that have one."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .no_value(NO_VALUE)
        .thresholds(_thresholds(steps))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.VALUE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .height(STAT_HEIGHT)
    )
    if words:
        results = {f"{value:g}": ValueMappingResult(text=word) for value, word in words.items()}
        panel.mappings([ValueMap(results)])
    return _asking(panel, [query], now=True)


def word(title: str, description: str, query: Query, colors: Mapping[str, str]) -> stat.Panel:
    """The legend of the one series that there is at this moment, in the colour that it has by itself."""
    panel = number(title, description, "none", query, ANY).text_mode(common.BigValueTextMode.NAME)
    for name, color in colors.items():
        panel.override_by_name(name, [DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def quantiles(title: str, description: str, unit: str, histogram: str, by: str = "", of: str = "") -> timeseries.Panel:
    """The median and the 95th percentile of a histogram, for each value of the label `by`; `of` chooses series."""
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    rates = f'sum by ({labels}) (rate({histogram}_bucket{{run="$run"{of}}}[$__rate_interval]))'
    queries = [(f"histogram_quantile({q}, {rates})", f"{legend}p{round(100 * q)}") for q in (0.5, 0.95)]
    return lines(title, description, unit, *queries)


def rate(title: str, description: str, counter: str, label: str, of: str = "") -> timeseries.Panel:
    """A counter's increase a second, by a label; `of` chooses series."""
    query = f'sum by ({label}) (rate({counter}{{run="$run"{of}}}[$__rate_interval]))'
    return lines(title, description, "none", (query, f"{{{{{label}}}}}"))


def gauge(title: str, description: str, unit: str, name: str, limits: Steps = ()) -> timeseries.Panel:
    """A gauge of one process."""
    return lines(title, description, unit, (f'max({name}{{run="$run"}})', ""), limits=limits)


def by_role(title: str, description: str, unit: str, name: str, limits: Steps = ()) -> timeseries.Panel:
    """A gauge that the learner has for each role."""
    return lines(title, description, unit, (f'max by (role) ({name}{{run="$run"}})', "{{role}}"), limits=limits)


@dataclass(frozen=True)
class Event(Builder[dict]):
    """What is marked on all panels while the query has series; Grafana's SDK leaves out the title."""

    name: str
    color: str
    query: str
    title: str

    def build(self) -> dict:
        return {
            "name": self.name,
            "datasource": SOURCE,
            "enable": True,
            "iconColor": self.color,
            "expr": _scoped(self.query),
            "step": "10s",
            "titleFormat": self.title,
        }


EVENTS = (
    Event("Scale", "blue", 'changes(redraft_controller_actors_target{run="$run"}[1m]) > 0', "another number of actors"),
    Event(
        "Restarts",
        BAD,
        'sum by (process) (increase(redraft_controller_restarts_total{run="$run"}[1m])) > 0',
        "{{process}} replaced",
    ),
    Event("Checkpoints", GOOD, 'changes(redraft_learner_checkpoint_time_seconds{run="$run"}[1m]) > 0', "checkpoint"),
    Event("Evaluations", "purple", 'redraft_controller_phase{run="$run",phase=~"evaluating|ending"} == 1', "{{phase}}"),
)
FIELDS: dict[str, dict[str, str]] = {
    "price": {"label": "Price of a GPU hour", "default": "1"},
    "peak": {"label": "Peak of a GPU, TFLOP/s", "default": "1000"},
}
"""Variables that a person types."""


def board(uid: str, title: str, description: str, *rows: Row, runs: bool = False) -> Dashboard:
    """A dashboard of one run (of several with `runs`), chosen above it; links lead to the others."""
    built = (
        dashboard.Dashboard(f"Redraft: {title}")
        .uid(f"redraft-{uid}")
        .description(description)
        .tags(["redraft"])
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Redraft")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["redraft"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("source").type("prometheus").hide(VariableHide.HIDE_VARIABLE))
        .with_variable(_chosen("namespace", "label_values(redraft_controller_phase, namespace)", everything=True))
    )
    run = _chosen("run", 'label_values(redraft_controller_phase{namespace=~"$namespace"}, run)', everything=False)
    built.with_variable(run.multi(True) if runs else run)
    numbers, top = itertools.count(1), 0
    for name, panels in rows:
        if name:
            built.with_row(dashboard.Row(name).id(next(numbers)).grid_pos(GridPos(h=1, w=WIDTH, x=0, y=top)))
            top += 1
        width, height = WIDTH // len(panels), max(panel.build().grid_pos.h for panel in panels)
        for place, panel in enumerate(panels):
            built.with_panel(panel.id(next(numbers)).grid_pos(GridPos(h=height, w=width, x=place * width, y=top)))
        top += height
    asked = str([target.expr for _, panels in rows for panel in panels for target in panel.build().targets or ()])
    if "$actor" in asked:
        actors = f'label_values(redraft_actor_weights_version{{{SCOPE}run="$run"}}, name)'
        built.with_variable(_chosen("actor", actors, everything=True))
    for name, words in FIELDS.items():
        if f"${name}" in asked:
            field = dashboard.TextBoxVariable(name).label(words["label"])
            built.with_variable(field.default_value(words["default"]))
    for event in () if runs else EVENTS:
        built.annotation(event)  # pyright: ignore[reportArgumentType]  it writes what it is given
    return built.build()


SCOPE = 'namespace=~"$namespace",'


def _chosen(name: str, query: str, everything: bool) -> dashboard.QueryVariable:
    """A variable that is chosen from what there is. Where nothing has the label, .* is all there is."""
    made = dashboard.QueryVariable(name).datasource(SOURCE).query(query)
    made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return made.include_all(True).all_value(".*").multi(True) if everything else made


def _scoped(query: str) -> str:
    return RUN.sub("{" + SCOPE, query)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [Threshold(None, NEUTRAL), *(Threshold(value, color) for value, color in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def _asking(panel, queries: Sequence[Query], now: bool = False):
    for letter, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(_scoped(expression)).legend_format(legend)
        panel.with_target(query.instant() if now else query.range())
    return panel
