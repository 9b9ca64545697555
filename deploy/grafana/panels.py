"""What the dashboards are built from: a few kinds of panels, and rows of them. Queries say {run="$run"}."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import (
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
    GridPos,
    Panel,
    VariableHide,
    VariableRefresh,
)

WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
Query = tuple[str, str]
"""PromQL and the legend of its series."""
Row = tuple[str, Sequence[Builder[Panel]]]
"""A title, and panels that share the width."""


def lines(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    """Values over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
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
    return _asking(panel, queries)


def shares(title: str, description: str, query: Query) -> timeseries.Panel:
    """Parts of a whole over time, stacked up to 100%."""
    panel = lines(title, description, "percentunit", query)
    return panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL)).fill_opacity(70).min(0).max(1)


def number(title: str, description: str, unit: str, query: Query, text: bool = False) -> stat.Panel:
    """The newest value; with `text` the legend instead."""
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).unit(unit).height(STAT_HEIGHT)
    panel.graph_mode(common.BigValueGraphMode.NONE if text else common.BigValueGraphMode.AREA)
    panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    panel.text_mode(common.BigValueTextMode.NAME if text else common.BigValueTextMode.VALUE)
    return _asking(panel, [query])


def quantiles(title: str, description: str, unit: str, histogram: str, by: str = "") -> timeseries.Panel:
    """The median and the 95th percentile of a histogram, for each value of the label `by`."""
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    rates = f'sum by ({labels}) (rate({histogram}_bucket{{run="$run"}}[$__rate_interval]))'
    queries = [(f"histogram_quantile({q}, {rates})", f"{legend}p{round(100 * q)}") for q in (0.5, 0.95)]
    return lines(title, description, unit, *queries)


def board(uid: str, title: str, description: str, *rows: Row) -> Dashboard:
    """A dashboard of one run, chosen above it; links lead to the others."""
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
        .with_variable(
            dashboard.QueryVariable("run")
            .datasource(SOURCE)
            .query("label_values(redraft_controller_phase, run)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    numbers, top = itertools.count(1), 0
    for name, panels in rows:
        built.with_row(dashboard.Row(name).id(next(numbers)).grid_pos(GridPos(h=1, w=WIDTH, x=0, y=top)))
        width, height = WIDTH // len(panels), max(panel.build().grid_pos.h for panel in panels)
        for place, panel in enumerate(panels):
            built.with_panel(panel.id(next(numbers)).grid_pos(GridPos(h=height, w=width, x=place * width, y=top + 1)))
        top += 1 + height
    return built.build()


def _asking(panel, queries: Sequence[Query]):
    for letter, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend))
    return panel
