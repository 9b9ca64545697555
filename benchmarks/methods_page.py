"""The tables and the picture of docs/results.md, from what benchmarks.methods measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.methods import Result
from protocols.evaluation import EvaluationSummary

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PICTURE = "results.png"

Of = Callable[[EvaluationSummary], "float | None"]
ANSWERS: tuple[tuple[str, Of], ...] = (
    ("turn 1", lambda summary: summary.sampled.accuracy_by_turn[0].value),
    ("last turn", lambda summary: summary.sampled.accuracy_by_turn[-1].value),
    ("fix rate", lambda summary: summary.sampled.fix_rate.value),
    ("keep rate", lambda summary: summary.sampled.keep_rate.value),
    ("majority of T turns", lambda summary: summary.sampled.majority_turns.value),
    ("any of T turns", lambda summary: summary.sampled.any_turn.value),
    ("pass@k", lambda summary: summary.sampled.pass_k.value),
)
ACTIONS: tuple[tuple[str, Of], ...] = (
    ("success", lambda summary: summary.sampled.success.value),
    ("success after an error", lambda summary: summary.sampled.success_after_error.value),
    ("share with an error", lambda summary: summary.sampled.error_share.value),
    ("actions", lambda summary: summary.sampled.actions.value),
    ("greedy success", lambda summary: summary.greedy and summary.greedy.success.value),
)


def tables(found: Sequence[Result]) -> str:
    """Markdown: answers tried again, environments of many actions, and controls."""
    answers = [result for result in found if result.after[0].kind == "answers"]
    actions = [result for result in found if result.after[0].kind == "actions"]
    parts = []
    for title, chosen, figures in (("signs", answers, ANSWERS), ("minicraft", actions, ACTIONS)):
        if chosen:
            parts += [f"### `{title}`\n", _table(chosen, figures)]
    if controlled := [result for result in answers if result.after[0].controls]:
        parts += ["### Second tries beside their controls\n", _controls(controlled)]
    return "\n".join(parts)


def _table(found: Sequence[Result], figures) -> str:
    heads = ["method", "seeds", *(name for name, _ in figures), "attempts", "CPU-s"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for result in found:
        cells = [_change(result, figure) for _, figure in figures]
        attempts, cpu = (f"{sum(values) / len(values):,.0f}" for values in (result.attempts, result.cpu_s))
        turns = result.after[0].turns
        name = f"`{result.method.name}`" + (f" (T = {turns})" if figures is ANSWERS else "")
        lines.append(_row([name, str(len(result.after)), *cells, attempts, cpu]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _change(result: Result, figure: Of) -> str:
    before, after = (_spread([figure(summary) for summary in summaries]) for summaries in (result.before, result.after))
    return after if result.before == result.after else f"{before} → {after}"


def _spread(values: Sequence[float | None]) -> str:
    """Mean over seeds with its standard error, where there is more than one."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    average = sum(known) / len(known)
    text = f"{average:.2f}".removeprefix("0") if average < 1 else f"{average:.1f}"
    if len(known) < 2:
        return text
    variance = sum((value - average) ** 2 for value in known) / (len(known) - 1)
    return f"{text} ±{math.sqrt(variance / len(known)):.3f}".replace("±0.", "±.")


def _controls(found: Sequence[Result]) -> str:
    """Success of the second try given a failed first one (the fix rate of two turns), by what stood between."""
    lines = [_row(["method", "second try after", "before", "after"]), _row(["---"] * 4)]
    for result in found:
        rows = [("the model's reflection", lambda summary: summary.sampled.fix_rate.value)]
        for label in result.after[0].controls:
            rows.append((label, lambda summary, label=label: summary.controls[label].fix_rate.value))
        for label, figure in rows:
            before = _spread([figure(summary) for summary in result.before])
            after = _spread([figure(summary) for summary in result.after])
            lines.append(_row([f"`{result.method.name}`", label, before, after]))
    return "\n".join(lines) + "\n"


def write(found: Sequence[Result], docs: Path) -> None:
    """Puts the tables between the marks of docs/results.md, and the picture beside it."""
    page = docs / "results.md"
    text = page.read_text() if page.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    draw(found, docs / "images" / PICTURE)
    shown = f"{BEGIN}\n![Before and after, by method](images/{PICTURE})\n\n{tables(found)}{END}"
    page.write_text(head + shown + tail)


def draw(found: Sequence[Result], path: Path) -> None:
    """Bars before and after: the last turn of answers, the success of actions; dots are the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from redraft.report.plots import AFTER, BEFORE, STYLE

    kinds = [
        ("answers", "signs: right at the last turn", ANSWERS[1][1]),
        ("actions", "minicraft: success", ACTIONS[0][1]),
    ]
    panels = [(title, figure, chosen) for kind, title, figure in kinds if (chosen := _of_kind(found, kind))]
    with plt.rc_context(STYLE):
        heights = [len(chosen) for _, _, chosen in panels]
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(7.5, 0.42 * sum(heights) + 1.2), height_ratios=heights, layout="constrained"
        )
        for axis, (title, value, chosen) in zip(axes if len(panels) > 1 else [axes], panels, strict=True):
            for place, result in enumerate(chosen):
                for shift, summaries, color, label in (
                    (-0.2, result.before, BEFORE, "before"),
                    (0.2, result.after, AFTER, "after"),
                ):
                    points = [value(summary) for summary in summaries]
                    axis.barh(
                        place + shift, sum(points) / len(points), 0.36, color=color, label=label if not place else None
                    )
                    axis.plot(points, [place + shift] * len(points), "o", color="#0f172a", markersize=2.5)
            axis.set_yticks(range(len(chosen)), [result.method.name for result in chosen])
            axis.invert_yaxis()
            axis.set(title=title, xlim=(0, 1))
            axis.legend(loc="lower right")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _of_kind(found: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in found if result.after[0].kind == kind]
