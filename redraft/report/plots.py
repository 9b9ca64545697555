"""The figures of a report: each function draws one and returns it as SVG text that can stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

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


def accuracy_by_turn(first: dict, last: dict | None, last_name: str) -> str:
    """Sampled with error bars, greedy dashed, of two evaluations."""
    with drawing() as (figure, axes):
        for summary, name, color in ((first, "before", BEFORE), (last, last_name, AFTER)):
            if summary:
                _accuracy(axes, summary, name, color)
        axes.set(xlabel="turn", ylabel="right", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(figure, "accuracy-by-turn")


def _accuracy(axes, summary: dict, name: str, color: str) -> None:
    turns = np.arange(1, summary["turns"] + 1)
    errors = [error or 0.0 for error in summary["se"]["accuracy_by_turn"]]
    axes.plot(turns, summary["accuracy_by_turn"], color=color, marker="o", markersize=4, label=name)
    axes.errorbar(turns, summary["accuracy_by_turn"], errors, fmt="none", ecolor=color, capsize=3)
    if summary.get("greedy"):
        axes.plot(
            turns, summary["greedy"]["accuracy_by_turn"], "--", color=color, linewidth=1.2, label=f"{name}, greedy"
        )


def accuracy_over_steps(evaluations: Sequence[dict]) -> str:
    """Accuracy on test tasks of each turn, at every evaluation."""
    steps = [evaluation["step"] for evaluation in evaluations]
    return _by_turn(steps, [e["accuracy_by_turn"] for e in evaluations], "accuracy-over-steps", "right, test tasks")


def outcomes(first: dict | None, last: dict | None, last_name: str) -> str:
    """Shares of episodes of many actions, of two evaluations, as bars with their errors."""
    shares = {
        "success": "success",
        "success_after_error": "success after\nan error",
        "error_share": "with an error",
        "loop_rate": "with a loop",
    }
    both = ((first, "before", BEFORE), (last, last_name, AFTER))
    found = [(summary, name, color) for summary, name, color in both if summary]
    with drawing() as (figure, axes):
        for n, (summary, name, color) in enumerate(found):
            x = np.arange(len(shares)) + 0.38 * (n - (len(found) - 1) / 2)
            values, errors = ([_of([part], key)[0] for key in shares] for part in (summary, summary["se"]))
            axes.bar(x, values, 0.36, yerr=errors, color=color, ecolor=INK, capsize=3, label=name)
        axes.set(ylabel="share of episodes", ylim=(0, 1.05), xticks=range(len(shares)))
        axes.set_xticklabels(shares.values())
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(axes)
        return svg(figure, "outcomes")


def success_over_steps(evaluations: Sequence[dict]) -> str:
    """Success on test tasks, and success after an error, at every evaluation."""
    x = _of(evaluations, "step")
    with drawing() as (figure, axes):
        for key, label, color in (("success", "success", AFTER), ("success_after_error", "after an error", ACCENT)):
            errors = _of([evaluation["se"] for evaluation in evaluations], key)
            axes.errorbar(x, _of(evaluations, key), errors, color=color, capsize=3, label=label, **_marker(x))
        _steps(axes, "success, test tasks")
        axes.set_ylim(bottom=0)
        legend(axes, columns=2)
        return svg(figure, "success-over-steps")


def reward(steps: Sequence[dict]) -> str:
    """Mean reward of the scored turns of the batch."""
    x = _of(steps, "step")
    with drawing() as (figure, axes):
        axes.plot(x, _of(steps, "reward"), color=AFTER, **_marker(x))
        _steps(axes, "mean reward of the batch")
        return svg(figure, "reward")


def reward_by_turn(steps: Sequence[dict]) -> str:
    """Mean reward of the batch, by turn number."""
    return _by_turn(
        _of(steps, "step"), [s.get("reward_by_index", []) for s in steps], "reward", "mean reward of the batch"
    )


def _by_turn(x: Sequence[float] | np.ndarray, values: Sequence[Sequence[float]], name: str, ylabel: str) -> str:
    turns = max((len(row) for row in values), default=0)
    with drawing() as (figure, axes):
        for turn in range(turns):
            curve = [row[turn] if turn < len(row) else np.nan for row in values]
            color = plt.cm.viridis_r(0.15 + 0.8 * turn / max(1, turns - 1))
            axes.plot(x, curve, color=color, label=f"turn {turn + 1}", **_marker(x))
        _steps(axes, ylabel)
        legend(axes, columns=min(turns, 5))
        return svg(figure, name)


def responses(steps: Sequence[dict]) -> str:
    """By role: shares of responses that were cut (solid) and that nothing could be parsed from (dashed), and below them
    their mean length."""
    x = _of(steps, "step")
    roles = dict.fromkeys(role for step in steps for role in step.get("response_tokens") or {})
    with drawing(rows=2, height=3.9) as (figure, (shares, lengths)):
        for number, role in enumerate(roles):
            color = (AFTER, ACCENT, "#0d9488", "#dc2626", INK)[number % 5]
            cut, unparsed = (_by_role(steps, key, role) for key in ("cut_share", "unparsed_share"))
            tokens = [(step.get("response_tokens") or {}).get(role, {}).get("mean", np.nan) for step in steps]
            shares.plot(x, cut, color=color, label=f"{role}, cut", **_marker(x))
            if not np.isnan(unparsed).all():
                shares.plot(x, unparsed, "--", color=color, label=f"{role}, unparsed", **_marker(x))
            lengths.plot(x, tokens, color=color, **_marker(x))
        shares.set(ylabel="share", ylim=(-0.02, 1.02))
        shares.yaxis.set_major_formatter(PercentFormatter(1.0))
        _steps(lengths, "tokens, mean")
        lengths.set_ylim(bottom=0)
        figure.align_ylabels()
        legend(shares, columns=4)
        return svg(figure, "responses")


def _by_role(steps: Sequence[dict], key: str, role: str) -> np.ndarray:
    return np.array([(step.get(key) or {}).get(role, np.nan) for step in steps], float)


def staleness(steps: Sequence[dict]) -> str:
    """Mean staleness of the trained groups, and the band up to the largest."""
    x, mean, most = (_of(steps, key) for key in ("step", "staleness_mean", "staleness_max"))
    with drawing() as (figure, axes):
        axes.fill_between(x, mean, most, color=AFTER, alpha=0.15, step="mid", label="up to the largest")
        axes.plot(x, mean, color=AFTER, label="mean", **_marker(x))
        _steps(axes, "steps")
        axes.set_ylim(0, 1.25 * np.nanmax(most, initial=1.0))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend(axes, columns=2)
        return svg(figure, "staleness")


def learner_time(steps: Sequence[dict]) -> str:
    """Seconds of each step by phase, stacked; packing, which a thread does meanwhile, as a line."""
    x = _of(steps, "step")
    seconds = {phase: _seconds(steps, phase) for phase in PHASES}
    with drawing() as (figure, axes):
        axes.stackplot(x, *seconds.values(), colors=PHASES.values(), labels=PHASES, linewidth=0, step="mid")
        axes.plot(x, _seconds(steps, "pack"), ":", color=INK, linewidth=1.2, label="pack (meanwhile)")
        _steps(axes, "seconds a step")
        axes.set_ylim(0, _room(np.sum(list(seconds.values()), axis=0), 1.35))
        legend(axes, columns=4)
        return svg(figure, "learner-time")


def generation(steps: Sequence[dict]) -> str:
    """Tokens that all actors sample in a second."""
    x, tokens = _of(steps, "step"), _of(steps, "tokens_per_s")
    with drawing() as (figure, axes):
        axes.plot(x, tokens, color=AFTER, **_marker(x))
        _steps(axes, "tokens/s, all actors")
        axes.set_ylim(0, _room(tokens, 1.15))
        return svg(figure, "generation")


def optimisation(steps: Sequence[dict]) -> str:
    """Loss, entropy and gradient norm, one above the other."""
    panels = (("loss", "loss", AFTER), ("entropy", "entropy, nats", "#0d9488"), ("gradient_norm", "gradient norm", INK))
    x = _of(steps, "step")
    with drawing(rows=3, height=3.9) as (figure, axes):
        for panel, (key, label, color) in zip(axes, panels, strict=True):
            values = _of(steps, key)
            panel.plot(x, values, color=color, **_marker(x))
            panel.set_ylabel(label)
            panel.yaxis.set_major_locator(MaxNLocator(3))
        _steps(axes[-1], panels[-1][1])
        figure.align_ylabels()
        return svg(figure, "optimisation")


def mismatch(steps: Sequence[dict]) -> str:
    """|log-prob of trainer minus sampler|: mean and largest over the trained tokens, on a logarithmic axis."""
    x = _of(steps, "step")
    with drawing() as (figure, axes):
        axes.plot(x, _of(steps, "mismatch_max"), color=BEFORE, label="largest", **_marker(x))
        axes.plot(x, _of(steps, "mismatch_mean"), color=AFTER, label="mean", **_marker(x))
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(bottom=0)
        _steps(axes, "nats")
        legend(axes, columns=2)
        return svg(figure, "mismatch")


def _of(steps: Sequence[dict], key: str) -> np.ndarray:
    """The values of `key`, NaN where a step has none."""
    return np.array([np.nan if step.get(key) is None else step[key] for step in steps], float)


def _seconds(steps: Sequence[dict], phase: str) -> np.ndarray:
    return np.array([step.get("seconds", {}).get(phase, 0.0) for step in steps])


def _room(values: np.ndarray, factor: float) -> float:
    """The top of an axis from 0. Single outliers (a first step that compiles, say) may leave the picture."""
    found = values[np.isfinite(values)]
    return factor * min(found.max(), 3 * np.quantile(found, 0.95)) if found.size and found.max() > 0 else 1.0


def _marker(x: Sequence[float] | np.ndarray) -> dict:
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
    """A figure in the report's style, closed at the end. Sizes are in inches."""

    def __init__(self, rows: int = 1, height: float = 2.9):
        self._rows, self._height = rows, height
        self._style = plt.rc_context(dict(STYLE))

    def __enter__(self):
        self._style.__enter__()
        self._figure, axes = plt.subplots(self._rows, 1, sharex=True, figsize=(5.6, self._height), layout="constrained")
        return self._figure, axes

    def __exit__(self, *error) -> None:
        plt.close(self._figure)
        self._style.__exit__(*error)


def svg(figure, name: str) -> str:
    """The figure's <svg> element. `name` salts its ids: ids of two figures of one page must differ."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
