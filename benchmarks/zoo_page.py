"""The tables and the picture of docs/results.md that compare methods at equal numbers of sampled tokens.

A change at the last turn that is beyond what chance explains is called better, or worse; all else is no change. Chance
is that of the evaluations and, with several seeds, that of the seeds, of which a few know little: Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.method_rows import Row
from benchmarks.methods import Bench, Result
from benchmarks.methods_page import OLDER, Change, Spread, row, spread
from benchmarks.zoo import BUDGETS, task_of
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure

BEGIN, END = "<!-- zoo -->", "<!-- /zoo -->"
PICTURE = "zoo.png"
SURE = 2.0  # standard errors of evaluations
STUDENT = {1: 0.0, 2: 12.7, 3: 4.3, 4: 3.2, 5: 2.8}
"""Standard errors over so many seeds: the quantile at 97.5 % of Student's t."""
NONE = "Not run yet: `python -m benchmarks.zoo`.\n"
COSTS = ("sampled_tokens", "learner_tokens", "steps")
HEADS = {
    "answers": ("over turns, after", "turn 1", "last turn", "accuracy by turn, after", "fix / blind", "keep / blind")
    + ("majority@k", "pass@k", "blank feedback", "tokens of a dialogue / of k answers"),
    "actions": ("success", "after an error", "share with an error", "pass@k"),
}
Of = Callable[[EvaluationSummary], Figure | None]


def tables(found: Sequence[Result], bench: Bench) -> str:
    """Markdown: a table a task, then second tries beside their controls."""
    parts = []
    for task, budget in BUDGETS.items():
        if own := [result for result in found if task_of(result.method) == task]:
            kind = own[0].rows[0].last.kind
            heads = ["method", "seeds", "change at the last turn", *HEADS[kind], "sampled tokens"]
            heads += ["learner tokens", "steps"]
            parts += [f"### `{task}`, {budget:,} sampled tokens each\n", row(heads), row(["---"] * len(heads))]
            parts += [row([*_cells(result, kind), *_paid(result, found, bench)]) for result in own] + [""]
    if controlled := [result for result in found if result.rows[0].last.controls.keys() - {"blank feedback"}]:
        parts += ["### What stood between two tries\n", row(["method", "between", "fix rate before", "after"])]
        parts += [row(["---"] * 4), *(line for result in controlled for line in _controls(result)), ""]
    return "\n".join(parts) if parts else NONE


def _cells(result: Result, kind: str) -> list[str]:
    label = f"`{result.method.name}`" + f" {OLDER}" * result.older
    own = _answers(result.rows) if kind == "answers" else _actions(result.rows)
    return [label, str(len(result.rows)), verdict(result.rows), *own]


def verdict(rows: Sequence[Row]) -> str:
    """Whether it is better, worse, or neither, by the change of what is solved."""
    if any(one.after is None for one in rows):
        return "not trained"
    change, error, sure = _difference([(one.before.solved, one.last.solved) for one in rows])
    said = "better" if change > sure else "worse" if change < -sure else "no change"
    return f"{said}: {_signed(change, error)}"


def _difference(pairs: Sequence[tuple[Figure, Figure]]) -> tuple[float, float, float]:
    """The second less the first in the mean over seeds, its standard error, and how far from 0 it has to be for more
    than chance. The two are taken as independent: cautious, since they share their tasks."""
    change, over_seeds = spread([(new.value or 0.0) - (old.value or 0.0) for old, new in pairs])
    within = math.sqrt(sum((one.error or 0.0) ** 2 for pair in pairs for one in pair)) / len(pairs)
    sure = max(SURE * within, STUDENT.get(len(pairs), STUDENT[max(STUDENT)]) * (over_seeds or 0.0))
    return change or 0.0, max(within, over_seeds or 0.0), sure


def _signed(change: float, error: float) -> str:
    return f"{change:+.2f} ±{error:.3f}".replace("0.", ".")


def _over_turns(rows: Sequence[Row]) -> str:
    """The last answer less the first one of the same dialogues, after training."""
    if rows[0].last.turns == 1:
        return "-"
    by_turn = [one.last.sampled.accuracy_by_turn for one in rows]
    return _signed(*_difference([(each[0], each[-1]) for each in by_turn])[:2])


def _of(rows: Sequence[Row], figure: Of) -> Change:
    def value(summary: EvaluationSummary) -> float | None:
        return None if (known := figure(summary)) is None else known.value

    return spread(value(one.before) for one in rows), spread(value(one.last) for one in rows)


def _told(rows: Sequence[Row], figure: Of) -> str:
    before, after = _of(rows, figure)
    return str(after) if rows[0].after is None else f"{before} → {after}"


def _answers(rows: Sequence[Row]) -> list[str]:
    turns = range(rows[0].last.turns)
    by_turn = [_of(rows, lambda summary, turn=turn: summary.sampled.accuracy_by_turn[turn])[1] for turn in turns]
    fix, keep, blind_fix, blind_keep = (
        _of(rows, lambda summary, key=key: getattr(summary.sampled, key))[1]
        for key in ("fix_rate", "keep_rate", "blind_fix", "blind_keep")
    )
    lengths = [spread(of(one.last) for one in rows) for of in (dialogue_tokens, independent_tokens)]
    return [
        _over_turns(rows),
        _told(rows, lambda summary: summary.sampled.accuracy_by_turn[0]),
        _told(rows, lambda summary: summary.solved),
        " ".join(str(Spread(one.mean)) for one in by_turn),
        f"{fix} / {blind_fix}",
        f"{keep} / {blind_keep}",
        _told(rows, lambda summary: summary.sampled.majority_k),
        _told(rows, lambda summary: summary.sampled.pass_k),
        _told(rows, _blank),
        " / ".join("-" if length.mean is None else f"{length.mean:.0f}" for length in lengths),
    ]


def _actions(rows: Sequence[Row]) -> list[str]:
    keys = ("success", "success_after_error", "error_share", "pass_k")
    return [_told(rows, lambda summary, key=key: getattr(summary.sampled, key)) for key in keys]


def _blank(summary: EvaluationSummary) -> Figure | None:
    """The last turn where each answer was told the same."""
    found = summary.controls.get("blank feedback")
    return found.accuracy_by_turn[-1] if isinstance(found, AnswerFigures) else None


def dialogue_tokens(summary: EvaluationSummary) -> float | None:
    """Mean tokens sampled for one task of the sampled pass; None where none was."""
    means = {role: found["mean"] for role, found in summary.sampled.responses.response_tokens.items()}
    answered = means.pop("attempt", None)
    if answered is None:
        return None
    return answered * summary.turns + sum(means.values()) * (summary.turns - 1)


def independent_tokens(summary: EvaluationSummary) -> float | None:
    """Mean tokens of k first answers, if they are as long as those of dialogues."""
    found = summary.sampled.responses.response_tokens.get("attempt")
    return None if found is None else found["mean"] * summary.k


def _paid(result: Result, found: Sequence[Result], bench: Bench) -> list[str]:
    """What it cost in the mean over seeds, with the method that it starts from."""
    stands_on = [other for other in found if other.method.name == result.method.start]
    return [f"{sum(_mean(one.rows, key) for one in (result, *stands_on)):,.0f}" for key in COSTS]


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(getattr(one, key) for one in rows) / len(rows)


def _controls(result: Result) -> list[str]:
    own = {"the model's reflection": _of(result.rows, lambda summary: summary.sampled.fix_rate)}
    for label in result.rows[0].last.controls:
        own[label] = _of(result.rows, lambda summary, label=label: summary.controls[label].fix_rate)
    name = f"`{result.method.name}`" + f" {OLDER}" * result.older
    return [row([name, label, str(before), str(after)]) for label, (before, after) in own.items()]


def write(found: Sequence[Result], bench: Bench, docs: Path) -> None:
    """Puts the tables between the marks of docs/results.md, and the picture beside it. Raises ValueError where the page
    has no marks."""
    page = docs / "results.md"
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for these tables: {BEGIN} ... {END}")
    picture = ""
    if found:
        draw(found, docs / "images" / PICTURE)
        picture = f"![Solved against sampled tokens, by method](images/{PICTURE})\n\n"
    page.write_text(f"{head}{BEGIN}\n{picture}{tables(found, bench)}{END}{tail}")


def curve(result: Result, found: Sequence[Result]) -> list[tuple[float, float]]:
    """Sampled tokens and what is solved, in the mean over seeds, with the tokens of the method that it starts from."""
    stands_on = [other for other in found if other.method.name == result.method.start]
    offset = sum(_mean(other.rows, "sampled_tokens") for other in stands_on)
    points = []
    for place in zip(*(one.curve for one in result.rows), strict=False):
        solved = [point.solved for point in place if point.solved is not None]
        if solved:
            tokens = offset + sum(point.sampled_tokens for point in place) / len(place)
            points.append((tokens, sum(solved) / len(solved)))
    return points


def draw(found: Sequence[Result], path: Path) -> None:
    """A panel a task, a line a method; those that train nothing are levels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from redraft.report.plots import STYLE

    tasks = [task for task in BUDGETS if any(task_of(result.method) == task for result in found)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(tasks), 1, figsize=(8, 4.2 * len(tasks)), squeeze=False, layout="constrained")
        for axis, task in zip(axes[:, 0], tasks, strict=True):
            own = [result for result in found if task_of(result.method) == task]
            for number, result in enumerate(own):
                points, label = curve(result, found), result.method.name.removeprefix(f"{task}-")
                color, line = plt.get_cmap("tab20")(number % 20), ("-", "--", ":")[number // 20 % 3]
                if len(points) > 1:
                    axis.plot(*zip(*points, strict=True), line, color=color, marker=".", label=label)
                elif points:
                    axis.axhline(points[0][1], color=color, linestyle=":", linewidth=1, label=label)
            axis.set(title=f"{task}: solved at the last turn", xlabel="sampled tokens", ylim=(0, 1))
            axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)
