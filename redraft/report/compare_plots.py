"""The plots of a comparison: each function draws one of the entries of one environment and returns SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from redraft.report import tables
from redraft.report.compare import Pooled, PooledRuns
from redraft.report.plots import AFTER, BEFORE, INK, drawing, legend, svg

COLORS = ("#2563eb", "#f59e0b", "#0d9488", "#dc2626", "#7c3aed", "#65a30d", "#db2777", "#475569")
MARKERS = "osD^vPX*"
LONGEST = 34  # characters of a label


def _style(number: int) -> dict:
    """Colour and marker of the entry of that number; no two of the first 64 look the same."""
    marker = MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
    return {"color": COLORS[number % len(COLORS)], "marker": marker, "markersize": 4}


def accuracy_by_turn(entries: Sequence[PooledRuns], name: str) -> str:
    """Of all entries: after training with error bars, before it dotted."""
    with drawing(height=_height(entries)) as (canvas, axes):
        most, apart = 1, min(0.04, 0.3 / len(entries))
        for number, entry in enumerate(entries):
            shift = apart * (number - (len(entries) - 1) / 2)  # so that error bars do not hide each other
            for when, line in (("before", ":"), ("after", "-")):
                values = entry.by_turn(when)
                most = max(most, len(values))
                label = entry.label if values and (when == "after" or not entry.by_turn("after")) else None
                x = np.arange(1, len(values) + 1) + shift
                _line(axes, x, values, number, line, label)
        axes.set(xlabel="turn", ylabel="right", xlim=(0.7, most + 0.3))
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(1, most + 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(canvas, f"accuracy {name}")


def _line(axes, x: np.ndarray, values: Sequence[Pooled], number: int, line: str, label: str | None) -> None:
    axes.errorbar(
        x,
        [value.value for value in values],
        [value.widest for value in values],
        linestyle=line,
        capsize=2,
        elinewidth=1,
        label=label and _short(label),
        alpha=0.6 if line == ":" else 1.0,
        **_style(number),
    )


def main_figure(entries: Sequence[PooledRuns], name: str) -> str:
    """The figure that says how good a model is, before and after, as bars."""
    found = [(entry, row) for entry in entries if (row := entry.main())]
    y = np.arange(len(found))
    with drawing(height=1.0 + 0.5 * max(len(found), 2)) as (canvas, axes):
        for when, color, shift in (("before", BEFORE, -0.19), ("after", AFTER, 0.19)):
            values = [getattr(row, when) for _, row in found]
            lengths = [np.nan if value.value is None else value.value for value in values]
            errors = [value.widest for value in values]
            axes.barh(y + shift, lengths, 0.36, xerr=errors, color=color, ecolor=INK, capsize=2, label=when)
        axes.set_yticks(y, [_short(f"{entry.label}: {row.label}") for entry, row in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(canvas, f"main {name}")


def by_generations(entries: Sequence[PooledRuns], name: str) -> str:
    """That figure against the generations spent on training; each run of an entry is a line of its own."""
    with drawing(height=_height(entries)) as (canvas, axes):
        for number, entry in enumerate(entries):
            label: str | None = entry.label
            for result in entry.results:
                figures = [tables.main(point.summary).of(point.summary.sampled) for point in result.curve]
                if figures:
                    x = np.array([point.generations for point in result.curve])
                    _line(axes, x, [Pooled(*figure) for figure in figures], number, "-", label)
                    label = None
        axes.set(xlabel="generations spent on training", ylabel="right at the last turn, or success")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(canvas, f"generations {name}")


def _height(entries: Sequence[PooledRuns]) -> float:
    """In inches, with room for the legend above the picture."""
    return 2.8 + 0.16 * len(entries[::2])


def _thousands(value: float, _) -> str:
    return f"{value / 1000:,g}k" if abs(value) >= 1000 else f"{value:g}"


def _short(text: str) -> str:
    """Cut in the middle, so that what labels differ in at their ends stays."""
    half = (LONGEST - 1) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"
