"""Draws Grafana's boards as pictures, where there is no Grafana: their panels at their places, from the answers of a
Prometheus to their own queries. What it looks like in Grafana differs in details; what is shown does not."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

Series = tuple[Mapping[str, str], Sequence[tuple[float, float]]]
"""The labels of a series, and its values over time."""
Asked = Callable[[str, bool], list[Series]]
"""The series of a query: of the whole time, or, where True, of its end alone."""

CELL_PX, ROW_PX, GAP_PX, DOTS = (50, 30, 4, 100)
PAGE, PANEL, TEXT, FAINT = ("#111217", "#181b1f", "#ccccdc", "#6e6e7a")
LINES = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#56a64b", "#fade2a", "#ffa6b0")
NAMED = {
    "text": TEXT,
    "green": "#73bf69",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
LEGEND_ROWS, LETTER_PX = 2, 5
"""Of the names below a panel."""
COLORS = 64
"""Of a picture: lines and letters need no more, and it is small."""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard as the JSON that Grafana reads, what answers its queries, and from when to when it is shown, in s."""

    said: Mapping[str, Any]
    asked: Asked
    begin: float
    end: float

    def save(self, path: Path) -> None:
        """Draws it as a PNG."""
        cells = [panel["gridPos"] for panel in self.said["panels"]]
        width = max(cell["x"] + cell["w"] for cell in cells) * CELL_PX
        height = max(cell["y"] + cell["h"] for cell in cells) * ROW_PX
        page = pyplot.figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS, facecolor=PAGE)
        for panel in self.said["panels"]:
            place = _Place(page, panel["gridPos"], width, height)
            {"row": self._row, "stat": self._stat, "timeseries": self._lines}[panel["type"]](panel, place)
        drawn = io.BytesIO()
        page.savefig(drawn, facecolor=PAGE)
        pyplot.close(page)
        Image.open(drawn).convert("RGB").quantize(COLORS).save(path, optimize=True)

    def _row(self, panel: Mapping, place: _Place) -> None:
        place.write(panel["title"], 0, 0.5, size=10, weight="bold", va="center")

    def _stat(self, panel: Mapping, place: _Place) -> None:
        place.background(panel["title"])
        defaults = panel["fieldConfig"]["defaults"]
        asked = [(target, one) for target in panel["targets"] for one in self.asked(target["expr"], True)]
        found = [(target, labels, values) for target, (labels, values) in asked if values]
        text, color = defaults["noValue"], color_of(panel, None)
        for target, labels, values in found[:1]:
            name, value = legend(target, labels), values[-1][1]
            words = [one["options"] for one in defaults.get("mappings", ())]
            mapped = {key: word["text"] for options in words for key, word in options.items()}
            text = mapped.get(f"{value:g}", written(value, defaults.get("unit", "none")))
            text = name if panel["options"].get("textMode") == "name" else text
            color = fixed(panel).get(name, color_of(panel, value))
        size = 22 if len(text) < 9 else 14
        place.write(text, 0.5, 0.42, size=size, color=NAMED[color], ha="center", va="center")

    def _lines(self, panel: Mapping, place: _Place) -> None:
        place.background(panel["title"])
        found = [
            (legend(target, labels), [(at - self.begin, value) for at, value in values])
            for target in panel["targets"]
            for labels, values in self.asked(target["expr"], False)
            if values
        ]
        if not found:
            place.write(panel["fieldConfig"]["defaults"]["noValue"], 0.5, 0.5, size=9, color=FAINT, ha="center")
            return
        axes = place.axes()
        axes.set_xlim(0, self.end - self.begin)
        axes.xaxis.set_major_locator(MultipleLocator(60 * max(1, round((self.end - self.begin) / 60 / 5))))
        draw(axes, panel, found)
        for event in self.said["annotations"]["list"]:
            for at in self._times(event):
                axes.axvline(at - self.begin, color=NAMED[event["iconColor"]], linewidth=0.6, linestyle=":", zorder=0)

    def _times(self, event: Mapping) -> list[float]:
        """When an event began: the first of the moments that follow one another."""
        found = sorted({at for _, values in self.asked(event["expr"], False) for at, _ in values})
        step = min((b - a for a, b in zip(found, found[1:], strict=False)), default=0.0)
        return [at for before, at in zip([0.0, *found], found, strict=False) if at - before > 1.5 * step]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a panel is on the page; positions within it are shares of it, from below."""

    page: Figure
    cell: Mapping[str, int]
    width: int
    height: int

    def background(self, title: str) -> None:
        left, below, wide, high = self._box(0, 0, 1, 1)
        gap_x, gap_y = GAP_PX / self.width, GAP_PX / self.height
        box = (left + gap_x, below + gap_y), wide - 2 * gap_x, high - 2 * gap_y
        self.page.patches.append(Rectangle(*box, transform=self.page.transFigure, facecolor=PANEL, zorder=-1))
        self.write(title, 0.0, 1.0, size=8, weight="bold", va="top", dx=12, dy=-12)

    def write(self, text: str, x: float, y: float, dx: int = 8, dy: int = 0, **how: Any) -> None:
        left, below, wide, high = self._box(0, 0, 1, 1)
        dx = 0 if how.get("ha") == "center" else dx
        at_x, at_y = left + x * wide + dx / self.width, below + y * high + dy / self.height
        self.page.text(at_x, at_y, text, None, **({"color": TEXT} | how))

    def axes(self) -> Axes:
        """With room for a title above, for numbers on the left and for a legend below."""
        wide, high = self.cell["w"] * CELL_PX, self.cell["h"] * ROW_PX
        left, right, above, below = 58 / wide, 14 / wide, 36 / high, 58 / high
        made = self.page.add_axes(self._box(left, below, 1 - left - right, 1 - above - below), facecolor=PANEL)
        for side in made.spines.values():
            side.set_visible(False)
        made.tick_params(colors=FAINT, labelsize=7, length=0)
        made.grid(color="#26282e", linewidth=0.6)
        made.set_axisbelow(True)
        made.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second / 60:.0f} min"))
        made.yaxis.set_major_locator(MaxNLocator(5))
        return made

    def _box(self, x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
        """A part of the panel as shares of the page."""
        cell = self.cell
        left = (cell["x"] + x * cell["w"]) * CELL_PX / self.width
        below = 1 - (cell["y"] + (1 - y) * cell["h"]) * ROW_PX / self.height
        return left, below, wide * cell["w"] * CELL_PX / self.width, high * cell["h"] * ROW_PX / self.height


def draw(axes: Axes, panel: Mapping, found: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> None:
    """The lines of a panel or, where they are parts of a whole, areas on one another; limits; names below."""
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults.get("unit", "none"), defaults.get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        times = sorted({at for _, values in found for at, _ in values})
        parts = [[dict(values).get(at, 0.0) for at in times] for _, values in found]
        drawn: Sequence[Any] = axes.stackplot(times, parts, colors=LINES, alpha=0.75, linewidth=0)
    else:
        drawn = [
            axes.plot(*zip(*values, strict=True), color=LINES[number % len(LINES)], linewidth=1.1)[0]
            for number, (_, values) in enumerate(found)
        ]
    low, high = defaults.get("min"), defaults.get("max")
    axes.set_ylim(low, high)
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
                axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=0.8, linestyle="--")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    name_below(
        axes, [(line, name) for line, (name, _) in zip(drawn, found, strict=True) if name], panel["gridPos"]["w"]
    )


def name_below(axes: Axes, named: Sequence[tuple[Any, str]], cells: int) -> None:
    """Says which line is which, as far as there is room."""
    columns = max(cells // 3, 1)
    most = LEGEND_ROWS * columns
    shown = list(named[: most - 1] if len(named) > most else named)
    if len(named) > most:
        shown.append((Line2D([], [], alpha=0), f"and {len(named) - most + 1} more"))
    letters = cells * CELL_PX // columns // LETTER_PX - 5
    axes.legend(
        [line for line, _ in shown],
        [name if len(name) <= letters else f"{name[: letters - 2]}..." for _, name in shown],
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.11),
        ncols=columns,
        fontsize=6.5,
        labelcolor=TEXT,
        frameon=False,
        handlelength=1.0,
        handletextpad=0.5,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def written(value: float, unit: str) -> str:
    """A number as people read it: 1.2k, 34%, 2 min."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "sci":
        return f"{value:.2g}"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    if unit == "s" and abs(value) >= 60:
        return f"{value / 60:.3g} min"
    base, ends = (1024, ("", "Ki", "Mi", "Gi", "Ti")) if unit == "bytes" else (1000, ("", "k", "M", "G", "T"))
    size = next((power for power in range(4, 0, -1) if abs(value) >= base**power), 0)
    said = {"s": " s", "bytes": "B", "Bps": "B/s", "watt": " W", "celsius": " °C"}.get(unit, "")
    return f"{value / base**size:.3g}{' ' if said.startswith('B') else ''}{ends[size]}{said}"


def legend(target: Mapping, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target.get("legendFormat", "")).strip()


def fixed(panel: Mapping) -> dict[str, str]:
    """The colours of names that have one."""
    return {
        one["matcher"]["options"]: prop["value"]["fixedColor"]
        for one in panel["fieldConfig"].get("overrides", ())
        for prop in one["properties"]
    }


def color_of(panel: Mapping, value: float | None) -> str:
    """By the thresholds; what has no value has the colour of the first."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step for step in steps if step.get("value") is None or (value is not None and value >= step["value"])]
    return reached[-1]["color"]


def load(folder: Path) -> dict[str, dict]:
    """The boards of a folder, by name."""
    return {path.stem.removeprefix("redraft-"): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
