"""The plots of a report: each function draws one and returns it as SVG text that can stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from protocols.evaluation import ActionFigures, AnswerFigures, EvaluationLine, EvaluationSummary, PassFigures
from protocols.reports import StepLine

BEFORE, AFTER, ACCENT, INK, FAINT = "#94a3b8", "#2563eb", "#f59e0b", "#334155", "#e2e8f0"
PHASES = {  # of the learner's step, in the order in which they happen, with their colours
    "wait": "#fca5a5",
    "train": "#2563eb",
    "commit": "#a78bfa",
    "gather": "#2dd4bf",
    "publish": "#86efac",
    "checkpoint": "#f59e0b",
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}
MARKED = 60  # curves of at most so many points also show the points


def accuracy_by_turn(first: EvaluationSummary | None, last: EvaluationSummary | None, last_name: str) -> str:
    """Sampled with error bars, greedy dashed, of two evaluations."""
    with drawing() as (canvas, axes):
        for summary, name, color in ((first, "before", BEFORE), (last, last_name, AFTER)):
            if summary:
                _accuracy(axes, summary, name, color)
        axes.set(xlabel="turn", ylabel="right", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(canvas, "accuracy-by-turn")


def _accuracy(axes, summary: EvaluationSummary, name: str, color: str) -> None:
    values, errors = _by_turn_of(summary.sampled)
    axes.plot(np.arange(1, len(values) + 1), values, color=color, marker="o", markersize=4, label=name)
    axes.errorbar(np.arange(1, len(values) + 1), values, errors, fmt="none", ecolor=color, capsize=3)
    if summary.greedy:
        values, _ = _by_turn_of(summary.greedy)
        label = f"{name}, greedy"
        axes.plot(np.arange(1, len(values) + 1), values, "--", color=color, linewidth=1.2, label=label)


def _by_turn_of(figures: PassFigures) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy at each turn, and its standard errors; none of actions."""
    by_turn = figures.accuracy_by_turn if isinstance(figures, AnswerFigures) else ()
    return _numbers(found.value for found in by_turn), np.array([found.error or 0.0 for found in by_turn])


def accuracy_over_steps(evaluations: Sequence[EvaluationLine]) -> str:
    """Accuracy on test tasks of each turn, at every evaluation."""
    steps = _numbers(line.step for line in evaluations)
    values = [_by_turn_of(line.summary.sampled)[0] for line in evaluations]
    return _by_turn(steps, values, "accuracy-over-steps", "right, test tasks")


def outcomes(first: EvaluationSummary | None, last: EvaluationSummary | None, last_name: str) -> str:
    """Shares of episodes of many actions, of two evaluations, as bars with their errors."""
    labels = ("success", "success after\nan error", "with an error", "with a loop")
    found = [
        (summary.sampled, name, color)
        for summary, name, color in ((first, "before", BEFORE), (last, last_name, AFTER))
        if summary and isinstance(summary.sampled, ActionFigures)
    ]
    with drawing() as (canvas, axes):
        for n, (of, name, color) in enumerate(found):
            x = np.arange(len(labels)) + 0.38 * (n - (len(found) - 1) / 2)
            shares = (of.success, of.success_after_error, of.error_share, of.loop_rate)
            values, errors = (_numbers(share[part] for share in shares) for part in (0, 1))
            axes.bar(x, values, 0.36, yerr=errors, color=color, ecolor=INK, capsize=3, label=name)
        axes.set(ylabel="share of episodes", ylim=(0, 1.05), xticks=range(len(labels)))
        axes.set_xticklabels(labels)
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(canvas, "outcomes")


def success_over_steps(evaluations: Sequence[EvaluationLine]) -> str:
    """Success on test tasks, and success after an error, at every evaluation."""
    acted = [(line.step, line.summary.sampled) for line in evaluations]
    found = [(step, of) for step, of in acted if isinstance(of, ActionFigures)]
    x = _numbers(step for step, _ in found)
    curves = (
        ("success", AFTER, [of.success for _, of in found]),
        ("after an error", ACCENT, [of.success_after_error for _, of in found]),
    )
    with drawing() as (canvas, axes):
        for label, color, curve in curves:
            values, errors = (_numbers(one[part] for one in curve) for part in (0, 1))
            axes.errorbar(x, values, errors, color=color, capsize=3, label=label, **_marker(x))
        _steps(axes, "success, test tasks")
        axes.set_ylim(bottom=0)
        legend(axes, columns=2)
        return svg(canvas, "success-over-steps")


def reward(lines: Sequence[StepLine]) -> str:
    """Mean reward of the scored turns of the batch."""
    x = _numbers(line.report.step for line in lines)
    with drawing() as (canvas, axes):
        axes.plot(x, _numbers(line.report.batch.reward for line in lines), color=AFTER, **_marker(x))
        _steps(axes, "mean reward of the batch")
        return svg(canvas, "reward")


def reward_by_turn(lines: Sequence[StepLine]) -> str:
    """Mean reward of the batch, by turn number."""
    values = [line.report.batch.reward_by_index for line in lines]
    return _by_turn(_numbers(line.report.step for line in lines), values, "reward", "mean reward of the batch")


def reward_parts(lines: Sequence[StepLine]) -> str:
    """Mean of each named part of the reward."""
    x, parts = _numbers(line.report.step for line in lines), [line.report.batch.reward_parts for line in lines]
    names = sorted({name for found in parts for name in found})
    with drawing() as (canvas, axes):
        for place, name in enumerate(names):
            color = matplotlib.colormaps["viridis_r"](0.15 + 0.8 * place / max(1, len(names) - 1))
            axes.plot(x, [found.get(name, np.nan) for found in parts], color=color, label=name, **_marker(x))
        _steps(axes, "mean of each part")
        legend(axes, columns=min(len(names), 4))
        return svg(canvas, "reward-parts")


def _by_turn(x: np.ndarray, values: Sequence[Sequence[float] | np.ndarray], name: str, ylabel: str) -> str:
    turns = max((len(row) for row in values), default=0)
    with drawing() as (canvas, axes):
        for turn in range(turns):
            curve = [row[turn] if turn < len(row) else np.nan for row in values]
            color = matplotlib.colormaps["viridis_r"](0.15 + 0.8 * turn / max(1, turns - 1))
            axes.plot(x, curve, color=color, label=f"turn {turn + 1}", **_marker(x))
        _steps(axes, ylabel)
        legend(axes, columns=min(turns, 5))
        return svg(canvas, name)


def responses(lines: Sequence[StepLine]) -> str:
    """By role: shares of responses that were cut (solid) and that nothing could be parsed from (dashed), and below them
    their mean length."""
    x, told = _numbers(line.report.step for line in lines), [line.report.batch.responses for line in lines]
    roles = dict.fromkeys(role for one in told for role in one.response_tokens)
    with drawing(rows=2, height=3.9) as (canvas, (shares, lengths)):
        for number, role in enumerate(roles):
            color = (AFTER, ACCENT, "#0d9488", "#dc2626", INK)[number % 5]
            unparsed = _numbers(one.unparsed_share.get(role) for one in told)
            tokens = [one.response_tokens[role]["mean"] if role in one.response_tokens else np.nan for one in told]
            cut = _numbers(one.cut_share.get(role) for one in told)
            shares.plot(x, cut, color=color, label=f"{role}, cut", **_marker(x))
            if not np.isnan(unparsed).all():
                shares.plot(x, unparsed, "--", color=color, label=f"{role}, unparsed", **_marker(x))
            lengths.plot(x, tokens, color=color, **_marker(x))
        shares.set(ylabel="share", ylim=(-0.02, 1.02))
        shares.yaxis.set_major_formatter(PercentFormatter(1.0))
        _steps(lengths, "tokens, mean")
        lengths.set_ylim(bottom=0)
        canvas.align_ylabels()
        legend(shares, columns=4)
        return svg(canvas, "responses")


def staleness(lines: Sequence[StepLine]) -> str:
    """Mean staleness of the trained groups, the band up to the largest, and the bound."""
    x = _numbers(line.report.step for line in lines)
    mean = _numbers(line.report.batch.staleness_mean for line in lines)
    most = _numbers(line.report.batch.staleness_max for line in lines)
    bound = _numbers(line.report.max_staleness for line in lines)
    with drawing() as (canvas, axes):
        axes.fill_between(x, mean, most, color=AFTER, alpha=0.15, step="mid", label="up to the largest")
        axes.plot(x, mean, color=AFTER, label="mean", **_marker(x))
        axes.step(x, bound, color=INK, where="mid", label="bound")
        _steps(axes, "steps")
        axes.set_ylim(0, 1.25 * np.nanmax(np.concatenate([most, bound]), initial=1.0))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend(axes, columns=3)
        return svg(canvas, "staleness")


def learner_time(lines: Sequence[StepLine]) -> str:
    """Seconds of each step by phase, stacked; packing, which a thread does meanwhile, as a line."""
    x = _numbers(line.report.step for line in lines)
    seconds = [_seconds(lines, phase) for phase in PHASES]
    with drawing() as (canvas, axes):
        axes.stackplot(x, *seconds, colors=PHASES.values(), labels=PHASES, linewidth=0, step="mid")
        axes.plot(x, _seconds(lines, "pack"), ":", color=INK, linewidth=1.2, label="pack (meanwhile)")
        _steps(axes, "seconds a step")
        axes.set_ylim(0, _room(np.sum(seconds, axis=0), 1.35))
        legend(axes, columns=4)
        return svg(canvas, "learner-time")


def generation(lines: Sequence[StepLine]) -> str:
    """Tokens that all actors sample in a second."""
    x, tokens = _numbers(line.report.step for line in lines), _numbers(line.tokens_per_s for line in lines)
    with drawing() as (canvas, axes):
        axes.plot(x, tokens, color=AFTER, **_marker(x))
        _steps(axes, "tokens/s, all actors")
        axes.set_ylim(0, _room(tokens, 1.15))
        return svg(canvas, "generation")


def optimisation(lines: Sequence[StepLine]) -> str:
    """Loss, entropy and gradient norm, one above the other."""
    reports = [line.report for line in lines]
    x = _numbers(report.step for report in reports)
    panels = (
        ("loss", AFTER, _numbers(report.fit.loss for report in reports)),
        ("entropy, nats", "#0d9488", _numbers(report.fit.entropy for report in reports)),
        ("gradient norm", INK, _numbers(report.gradient_norm for report in reports)),
    )
    with drawing(rows=3, height=3.9) as (canvas, axes):
        for panel, (label, color, values) in zip(axes, panels, strict=True):
            panel.plot(x, values, color=color, **_marker(x))
            panel.set_ylabel(label)
            panel.yaxis.set_major_locator(MaxNLocator(3))
        _steps(axes[-1], "gradient norm")
        canvas.align_ylabels()
        return svg(canvas, "optimisation")


def mismatch(lines: Sequence[StepLine]) -> str:
    """|log-prob of trainer minus sampler|: mean and largest over the trained tokens, on a logarithmic axis."""
    x = _numbers(line.report.step for line in lines)
    largest = _numbers(line.report.fit.mismatch_max for line in lines)
    mean = _numbers(line.report.fit.mismatch_mean for line in lines)
    with drawing() as (canvas, axes):
        axes.plot(x, largest, color=BEFORE, label="largest", **_marker(x))
        axes.plot(x, mean, color=AFTER, label="mean", **_marker(x))
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(bottom=0)
        _steps(axes, "nats")
        legend(axes, columns=2)
        return svg(canvas, "mismatch")


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """These values, NaN for those that are missing."""
    return np.array([np.nan if value is None else value for value in values], float)


def _seconds(lines: Sequence[StepLine], phase: str) -> np.ndarray:
    return np.array([line.report.seconds.get(phase, 0.0) for line in lines])


def _room(values: np.ndarray, factor: float) -> float:
    """The top of an axis from 0. Single outliers (a first step that compiles, say) may leave the picture."""
    found = values[np.isfinite(values)]
    return factor * min(found.max(), 3 * np.quantile(found, 0.95)) if found.size and found.max() > 0 else 1.0


def _marker(x: np.ndarray) -> dict:
    return {"marker": "o", "markersize": 3} if len(x) <= MARKED else {}


def _steps(axes, ylabel: str) -> None:
    axes.set(xlabel="step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.margins(x=0.01)


def legend(axes, columns: int = 1) -> None:
    """Above the picture, where it hides nothing."""
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=max(columns, 2), borderaxespad=0.2, columnspacing=1.2
        )


class drawing:
    """A plot in the report's style, closed at the end. Sizes are in inches."""

    def __init__(self, rows: int = 1, height: float = 2.9):
        self._rows, self._height = rows, height
        self._style = plt.rc_context(dict(STYLE))

    def __enter__(self):
        self._style.__enter__()
        self._canvas, axes = plt.subplots(self._rows, 1, sharex=True, figsize=(5.6, self._height), layout="constrained")
        return self._canvas, axes

    def __exit__(self, *error) -> None:
        plt.close(self._canvas)
        self._style.__exit__(*error)


def svg(canvas, name: str) -> str:
    """The plot's <svg> element. `name` salts its ids: ids of two plots of one page must differ."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
